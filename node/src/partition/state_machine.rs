//! State machine of a partition: derives the next offset, the producer table, and the topic's view if it has one, from committed
//! entries, and where the log starts.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chronicle_log::{Log, mutant};
use chronicle_records::{ProducerLimits, ProducerTable};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::views::{self, View};
use crate::raft::{CommittedEntry, ControlEntry, Machine};

/// Progress of applying a partition's entries; readers may read up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Last applied raft index; `None`: no entry was applied yet.
    pub index: Option<u64>,
    /// Offset after the last applied record: the high watermark.
    pub next_offset: u64,
}

/// Where the members have agreed that the log starts. A log may have entries before it that are not deleted yet, or are in a
/// segment with later ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgreedStart {
    /// Raft index of the first entry that is kept.
    pub index: u64,
    /// First offset that can be read.
    pub offset: u64,
}

/// The part of the state that the rest of the partition reads.
pub(super) struct AppliedState {
    /// Progress; readers wait on it.
    pub progress: watch::Sender<Progress>,
    /// Producers as of the applied progress. Its times are those of [`Self::now_ms`].
    pub producers: Mutex<ProducerTable>,
    opened: Instant,
    /// The view as of the applied progress; `None`: the topic has none.
    pub view: Option<Mutex<Box<dyn View>>>,
    /// The agreed start; `None`: the log has no control entry yet.
    agreed: Mutex<Option<AgreedStart>>,
    /// On the leader: bytes proposed for the segment that the next entry continues.
    pub open_bytes: AtomicU64,
}

impl AppliedState {
    /// The agreed start of the log.
    pub(super) fn start(&self) -> AgreedStart {
        self.agreed.lock().unwrap_or_default()
    }

    /// Whether the log has, or had, a control entry.
    pub(super) fn has_control_entries(&self) -> bool {
        self.agreed.lock().is_some()
    }

    /// First offset that can be read: the agreed one, unless the log of this replica starts later.
    pub(super) fn log_start(&self, log: &Log) -> u64 {
        self.start().offset.max(log.position().start_offset)
    }

    /// The clock of the producer table: milliseconds since the partition was opened here.
    pub(super) fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }
}

/// State machine of a partition group.
pub(crate) struct PartitionMachine {
    log: Arc<Log>,
    shared: Arc<AppliedState>,
    next_offset: u64,
    producer_limits: ProducerLimits,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    next_offset: u64,
    producers: ProducerTable,
    /// The view's state in base64. Absent: the partition had no view when the checkpoint was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    view: Option<String>,
    /// The agreed start. Absent: the log had no control entry when the checkpoint was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<AgreedStart>,
}

impl PartitionMachine {
    /// The state machine of a log without a checkpoint, with an empty view or none.
    pub(super) fn new(
        log: Arc<Log>,
        producer_limits: ProducerLimits,
        view: Option<Box<dyn View>>,
    ) -> (Self, Arc<AppliedState>) {
        let next_offset = log.position().start_offset;
        let shared = Arc::new(AppliedState {
            progress: watch::Sender::new(Progress { index: None, next_offset }),
            producers: Mutex::new(ProducerTable::new(producer_limits)),
            opened: Instant::now(),
            view: view.map(Mutex::new),
            agreed: Mutex::new(None),
            open_bytes: AtomicU64::new(0),
        });
        (Self { log, shared: shared.clone(), next_offset, producer_limits }, shared)
    }

    /// Restores the view as of a checkpoint.
    fn restore_view(&self, saved: &Saved, applied_index: Option<u64>) -> Result<(), String> {
        let Some(view) = &self.shared.view else { return Ok(()) };
        let mut view = view.lock();
        let restored = match (&saved.view, applied_index) {
            (Some(text), _) => {
                let bytes = BASE64.decode(text).map_err(|e| format!("view: {e}"));
                bytes.and_then(|bytes| view.restore(&bytes).map_err(|e| format!("view: {e}")))
            }
            (None, Some(last)) => {
                views::rebuild(&mut **view, &self.log, saved.next_offset, last).map_err(|e| format!("view: {e}"))
            }
            (None, None) => {
                view.clear();
                Ok(())
            }
        };
        if restored.is_err() {
            view.clear();
        }
        restored
    }
}

impl PartitionMachine {
    fn apply_control(&self, at: u64, entry: ControlEntry) {
        let mut agreed = self.shared.agreed.lock();
        let start = agreed.get_or_insert_default();
        let ControlEntry::LogStart { index, offset, .. } = entry else { return };
        // Whatever a leader proposes: a start never goes back, and never beyond what is committed.
        if index >= start.index && offset >= start.offset && index <= at && offset <= self.next_offset {
            *start = AgreedStart { index, offset };
        } else {
            tracing::warn!(log = %self.log.id(), at, index, offset, ?start, "a log start is out of range and is ignored");
        }
    }
}

impl Machine for PartitionMachine {
    fn apply(&mut self, entry: &CommittedEntry<'_>) -> Result<Bytes, String> {
        if let Some(control) = entry.control {
            self.apply_control(entry.index, control);
        }
        let Some(data) = entry.data else { return Ok(Bytes::new()) };
        let now_ms = self.shared.now_ms();
        let mut producers = self.shared.producers.lock();
        let mut view = self.shared.view.as_ref().map(|view| view.lock());
        let end = self.next_offset + u64::from(data.record_count);
        let mut offset = self.next_offset;
        for batch in chronicle_records::split(&data.payload) {
            let (header, bytes) = batch.map_err(|e| e.to_string())?;
            // Whole batches may have been taken out of a stored entry, as may records.
            if header.base_offset < offset as i64 || header.next_offset() > end as i64 {
                let (base, next) = (header.base_offset, header.next_offset());
                return Err(format!("batch: offsets {base} to {next}: must be within {offset} to {end}"));
            }
            producers.appended(&header, header.base_offset, now_ms);
            if let Some(view) = &mut view {
                views::apply_batch(&mut ***view, &bytes)?;
            }
            offset = header.next_offset() as u64;
        }
        self.next_offset = end;
        Ok(Bytes::new())
    }

    fn applied(&mut self, index: u64) {
        let next_offset = if mutant!("end-before-commit") { self.log.position().next_offset } else { self.next_offset };
        self.shared.progress.send_replace(Progress { index: Some(index), next_offset });
    }

    fn save(&self) -> Vec<u8> {
        let saved = Saved {
            next_offset: self.next_offset,
            producers: if mutant!("producers-not-saved") {
                ProducerTable::default()
            } else {
                self.shared.producers.lock().clone()
            },
            view: self.shared.view.as_ref().map(|view| BASE64.encode(view.lock().save())),
            start: *self.shared.agreed.lock(),
        };
        serde_json::to_vec(&saved).expect("a producer table has integer keys and plain values")
    }

    fn restore(&mut self, bytes: &[u8], applied_index: Option<u64>) -> Result<(), String> {
        let mut saved: Saved = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        self.restore_view(&saved, applied_index)?;
        saved.producers.resume(self.producer_limits, self.shared.now_ms());
        self.next_offset = saved.next_offset;
        *self.shared.producers.lock() = saved.producers;
        *self.shared.agreed.lock() = saved.start;
        self.shared.progress.send_replace(Progress { index: applied_index, next_offset: saved.next_offset });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chronicle_log::disk::MemoryDisk;
    use chronicle_log::{LogConfig, LogId, Store, StoreConfig};
    use uuid::Uuid;

    use super::*;
    use crate::raft::StartReason;

    fn machine() -> (Arc<Store>, PartitionMachine, Arc<AppliedState>) {
        let disk = Arc::new(MemoryDisk::new());
        let store = Store::open(disk, Path::new("/data"), StoreConfig::default()).unwrap();
        let log = store.open_log(LogId { topic: Uuid::from_u128(3), partition: 0 }, LogConfig::default()).unwrap();
        let (mut machine, shared) = PartitionMachine::new(log, ProducerLimits::default(), None);
        machine.restore(br#"{"next_offset":100,"producers":{"producers":{}}}"#, Some(20)).unwrap();
        (store, machine, shared)
    }

    fn start(index: u64, offset: u64) -> ControlEntry {
        ControlEntry::LogStart { index, offset, time_ms: 0, reason: StartReason::Size }
    }

    fn apply(machine: &mut PartitionMachine, index: u64, control: ControlEntry) {
        machine.apply(&CommittedEntry { index, data: None, control: Some(control) }).unwrap();
    }

    #[test]
    fn a_log_start_only_goes_forward_and_stays_within_what_is_committed() {
        let (_store, mut machine, shared) = machine();
        assert_eq!((shared.start(), shared.has_control_entries()), (AgreedStart::default(), false));
        apply(&mut machine, 21, ControlEntry::SegmentEnd { time_ms: 0 });
        assert_eq!((shared.start(), shared.has_control_entries()), (AgreedStart::default(), true));
        apply(&mut machine, 22, start(10, 50));
        let agreed = AgreedStart { index: 10, offset: 50 };
        assert_eq!(shared.start(), agreed);
        for out_of_range in [start(9, 50), start(10, 49), start(24, 60), start(11, 101)] {
            apply(&mut machine, 23, out_of_range);
            assert_eq!(shared.start(), agreed, "{out_of_range:?}");
        }
        // Nothing of it is deleted yet, and the log has no entry there: it is refused all the same.
        assert_eq!(shared.log_start(&machine.log), 50);
        apply(&mut machine, 24, start(24, 100));
        assert_eq!(shared.log_start(&machine.log), 100);
    }

    #[test]
    fn a_checkpoint_has_the_agreed_start_and_one_of_an_earlier_release_none() {
        let (_store, mut machine, _) = machine();
        apply(&mut machine, 21, start(10, 50));
        let saved = machine.save();
        let (_other_store, mut restored, shared) = self::machine();
        restored.restore(&saved, Some(21)).unwrap();
        assert_eq!((shared.start(), shared.has_control_entries()), (AgreedStart { index: 10, offset: 50 }, true));
        let earlier = br#"{"next_offset":100,"producers":{"producers":{}}}"#;
        restored.restore(earlier, Some(20)).unwrap();
        assert!(!shared.has_control_entries());
        let text = String::from_utf8(restored.save()).unwrap();
        assert!(!text.contains("start"), "{text}");
    }
}
