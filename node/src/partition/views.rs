//! Views: state that a partition derives from the records themselves, beside the producer table.
//!
//! A view sees every committed record once, in offset order, on every replica. Its state is part of the partition's
//! checkpoint, so that it survives a restart, travels in snapshots, and outlives the records that retention deletes.
//!
//! Invariants:
//! - A view is a pure function of the records, without a clock, randomness or I/O: all replicas hold the same.
//! - A view does not decide what is appended. Bytes that it cannot decode are skipped: a record that was
//!   acknowledged must never stop a replica.
//!
//! `state_machine.rs` applies, saves and restores views; [`super::ViewOf`] defines which topics have one.

use std::any::Any;

use chronicle_log::Log;
use chronicle_records::Record;

use crate::model::{STORED, batches_from};

/// Bytes of entries that are read at a time when a view is rebuilt from the log.
const REBUILD_BYTES: usize = 4 << 20;

/// State derived from the records of a partition.
pub trait View: Any + Send {
    /// Applies the next record.
    fn apply(&mut self, record: &Record);

    /// The state as bytes, for [`View::restore`].
    fn save(&self) -> Vec<u8>;

    /// Replaces the state by a saved one.
    ///
    /// # Errors
    /// Why the bytes are invalid; the replica does not start then.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), String>;

    /// Clears the state: as before the first record.
    fn clear(&mut self);
}

/// Rebuilds a view from the entries of the log up to raft index `last` (inclusive): for a checkpoint that was
/// saved before the partition had the view.
pub(super) fn rebuild(view: &mut dyn View, log: &Log, next_offset: u64, last: u64) -> Result<(), String> {
    view.clear();
    let mut from = log.position().start_offset;
    while from < next_offset {
        let entries = log.read_at_offset(from, last, REBUILD_BYTES).map_err(|e| e.to_string())?;
        let Some(entry) = entries.last() else {
            return Err(format!(
                "log: no records from offset {from}: must have all up to {next_offset}, the end of the checkpoint"
            ));
        };
        let after = entry.next_offset();
        for batch in batches_from(&entries, from).map_err(|e| e.to_string())? {
            apply_batch(view, &batch)?;
        }
        from = after;
    }
    Ok(())
}

/// Applies the records of one stored batch.
pub(super) fn apply_batch(view: &mut dyn View, batch: &bytes::Bytes) -> Result<(), String> {
    for record in chronicle_records::records(batch, &STORED).map_err(|e| e.to_string())? {
        view.apply(&record.map_err(|e| e.to_string())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chronicle_records::ProducerLimits;
    use std::sync::Arc;

    use super::super::state_machine::PartitionMachine;
    use super::*;
    use crate::config::Config;
    use crate::groups::{Commit, CommittedOffset, GROUPS_TOPIC, GroupTable, Groups, Partitions, partition_of};
    use crate::raft::Machine;
    use crate::runtime::Node;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checkpoint_from_before_the_view_is_made_up_for_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        let node = Node::start(Arc::new(config)).await.unwrap();
        let broker = node.broker().clone();
        let groups = Groups::start(broker.clone());
        for offset in 0..20 {
            let offset = CommittedOffset { topic: "default".into(), partition: 0, offset, metadata: String::new() };
            groups.commit(Commit { group: "g".into(), offsets: vec![offset], ..Commit::default() }).await.unwrap();
        }
        assert_eq!(groups.offsets("g", &Partitions::new()).await.unwrap()[0].offset, 19);
        let topic = broker.cluster().state().topics[GROUPS_TOPIC].clone();
        let partition = broker.partition(&topic, partition_of("g", topic.partitions)).await.unwrap();
        let progress = *partition.progress().borrow();
        let view = Box::new(GroupTable::default());
        let (mut machine, shared) = PartitionMachine::new(partition.log.clone(), ProducerLimits::default(), Some(view));
        let saved = format!(r#"{{"next_offset":{},"producers":{{"producers":{{}}}}}}"#, progress.next_offset);
        machine.restore(saved.as_bytes(), progress.index).unwrap();
        let live = partition.view(|live: &GroupTable| live.save()).unwrap();
        assert_eq!(shared.view.as_ref().unwrap().lock().save(), live);
        // A checkpoint that contains the view is restored unchanged, also by a topic without a view.
        let (_, shared) = PartitionMachine::new(
            partition.log.clone(),
            ProducerLimits::default(),
            Some(Box::new(GroupTable::default())),
        );
        assert_ne!(shared.view.as_ref().unwrap().lock().save(), live);
        let whole = machine.save();
        let (mut plain, _) = PartitionMachine::new(partition.log.clone(), ProducerLimits::default(), None);
        plain.restore(&whole, progress.index).unwrap();
        machine.restore(&whole, progress.index).unwrap();
        drop(partition);
        groups.shutdown().await;
        node.shutdown().await;
    }
}
