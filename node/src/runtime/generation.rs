//! The generation of this node's data directory: read, raised and kept on disk, with those that it has seen of other nodes.
//!
//! The number is raised, durably, before other nodes hear of it, so that a directory never shows less than it has shown:
//!
//! - when the node starts, before it answers anything, with a new lineage;
//! - every [`RAISE_EVERY`] while it stores entries, so that a snapshot of the running node is behind soon after;
//! - when it stops, after its last entry.
//!
//! A start raises the number only if another node has accepted the one before: otherwise a directory that was rolled back could
//! start again and again until it has caught up with what it had shown. For the same reason a node that was refused remembers that.
//!
//! What it has seen of others is kept because the controller's state may be old after a crash of all nodes: a node checks others
//! before it knows what is committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::{LogError, Store};

use super::{Node, refused};
use crate::cluster::CONTROLLER_LOG;
use crate::controller::ControllerError;
use crate::host::flushed::journal;
use crate::host::now_ms;
use crate::membership::JoinRefusal;
use crate::metadata::DiskGeneration;
use crate::model::{ApiError, PartitionError};
use crate::peers::Expulsion;

/// Journal key of the controller's log whose value is a [`StoredGeneration`].
pub(super) const KEY_GENERATION: u8 = 11;
/// Journal key of the controller's log: the latest generations seen of other nodes, JSON by raft id.
const KEY_GENERATIONS_SEEN: u8 = 12;
/// Interval at which the generation is raised while the node stores entries. A rollback that forgets less may go unnoticed.
const RAISE_EVERY: Duration = Duration::from_secs(10);
/// How long a node that stops waits for its disk to take the last generation.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest reason of a refusal that is stored, in bytes.
const REASON_MAX: usize = 4096;

/// The generation of a data directory, as its journal has it: number and lineage (`u64`), state (a byte), reason (UTF-8).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct StoredGeneration {
    /// 0: none yet, a directory of an earlier version or a new one.
    pub(super) number: u64,
    pub(super) lineage: u64,
    /// Another node has accepted it.
    pub(super) accepted: bool,
    /// Another node has refused it, and why.
    pub(super) refused: Option<String>,
}

impl StoredGeneration {
    /// The generation that a person gives to a directory. It counts as accepted, so that the next start raises it and begins a
    /// lineage of its own.
    pub(super) fn given(number: u64) -> Self {
        Self { number, lineage: 0, accepted: true, refused: None }
    }

    /// A number beyond those that the cluster has seen of any directory: the time in milliseconds since the Unix epoch, which rises
    /// as fast as generations at least, also when one snapshot is restored twice.
    pub(super) fn number_beyond_all() -> u64 {
        now_ms().max(0).cast_unsigned()
    }

    /// Reads the generation of a data directory.
    pub(super) fn load(store: &Store) -> Self {
        store.journal_get(CONTROLLER_LOG, KEY_GENERATION).and_then(|bytes| Self::decode(&bytes)).unwrap_or_default()
    }

    /// Stores it, durably.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub(super) async fn save(&self, store: &Arc<Store>) -> Result<(), LogError> {
        journal(store, CONTROLLER_LOG, KEY_GENERATION, self.encode()).await
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = [self.number.to_le_bytes(), self.lineage.to_le_bytes()].concat();
        bytes.push(u8::from(self.accepted) | (u8::from(self.refused.is_some()) << 1));
        bytes.extend(self.refused.iter().flat_map(|why| why.bytes().take(REASON_MAX)));
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk()?;
        let (lineage, rest) = rest.split_first_chunk()?;
        let (state, reason) = rest.split_first()?;
        Some(Self {
            number: u64::from_le_bytes(*number),
            lineage: u64::from_le_bytes(*lineage),
            accepted: state & 1 != 0,
            refused: (state & 2 != 0).then(|| String::from_utf8_lossy(reason).into_owned()),
        })
    }

    /// Returns the generation with which the node starts next. `lineage`: a random number.
    fn next_start(&self, lineage: u64) -> Self {
        if self.number > 0 && !self.accepted {
            return self.clone();
        }
        Self { number: self.number + 1, lineage, accepted: false, refused: None }
    }
}

/// Raises the generation at the start of a process, and returns it with the number of the process. The number of the generation is
/// 0 when the disk is full: other nodes cannot check this one.
///
/// # Errors
/// When another node has refused the directory, or the journal cannot be written.
pub(super) async fn begin(store: &Arc<Store>, boot: u64, lineage: u64) -> Result<DiskGeneration, ApiError> {
    let found = StoredGeneration::load(store);
    if let Some(why) = &found.refused {
        return Err(refused(JoinRefusal::RolledBack, why));
    }
    let next = found.next_start(lineage);
    let stored = if next == found { Ok(()) } else { next.save(store).await };
    match stored {
        Ok(()) => Ok(DiskGeneration { number: next.number, lineage: next.lineage, boot }),
        Err(error @ LogError::NoSpace { .. }) => {
            tracing::warn!(%error, "cannot raise the generation of the data directory: a rollback would not be noticed");
            Ok(DiskGeneration { boot, ..DiskGeneration::default() })
        }
        Err(error) => Err(ControllerError::from(PartitionError::from(error)).into()),
    }
}

/// Returns what this node has seen of others before it was restarted.
pub(super) fn remembered(store: &Store) -> BTreeMap<u64, DiskGeneration> {
    let bytes = store.journal_get(CONTROLLER_LOG, KEY_GENERATIONS_SEEN);
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Keeps the generation rising, and what is seen of others stored, until the node stops.
pub(super) async fn run(node: Node) {
    let cluster = node.inner.cluster.clone();
    let generations = cluster.peers.liveness().generations();
    let appended = || cluster.store.metrics().appended_entries.get();
    let mut accepted = generations.accepted();
    // `None`: not raised in this process yet.
    let (mut entries, mut seen, mut tried) = (None, generations.changes(), false);
    let mut tick = tokio::time::interval(RAISE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = node.inner.stop.cancelled() => return,
            _ = accepted.wait_for(|accepted| *accepted), if !tried => {}
            _ = tick.tick() => {}
        }
        let changes = generations.changes();
        if changes != seen && store_seen(&node) {
            seen = changes;
        }
        // A start that nobody has accepted may be repeated, and must not rise then.
        if !*accepted.borrow() {
            continue;
        }
        let now = appended();
        if entries != Some(now) && raise(&node).await {
            entries = Some(now);
        }
        // When that failed, the next tick tries again.
        tried = true;
    }
}

/// Stores, durably, what the node must not forget when it stops: that it was refused, or a generation after its last entry, which its
/// last heartbeats show.
pub(super) async fn finish(node: &Node) {
    let liveness = node.inner.cluster.peers.liveness();
    let expelled = liveness.expelled().borrow().clone();
    let accepted = *liveness.generations().accepted().borrow();
    let mut shown = false;
    let last = async {
        store_seen(node);
        match expelled {
            Some(Expulsion::RolledBack(why)) => {
                let store = &node.inner.cluster.store;
                let rejected = StoredGeneration { refused: Some(why), ..StoredGeneration::load(store) };
                if let Err(error) = rejected.save(store).await {
                    tracing::warn!(%error, "cannot store that the data directory was refused");
                }
            }
            _ => shown = accepted && raise(node).await,
        }
    };
    if tokio::time::timeout(FINISH_TIMEOUT, last).await.is_err() {
        tracing::warn!("the disk did not take the last generation of the data directory in time");
    }
    if shown {
        // Another heartbeat to each node, as far as it can be reached.
        let interval = node.inner.cluster.config().cluster.beat_interval_ms;
        tokio::time::sleep(Duration::from_millis(2 * interval)).await;
    }
}

/// Puts what was seen of other nodes into the journal, which becomes durable with a later flush.
fn store_seen(node: &Node) -> bool {
    let cluster = &node.inner.cluster;
    let seen = serde_json::to_vec(&cluster.peers.liveness().generations().seen()).expect("numbers by number");
    cluster.store.journal_put(CONTROLLER_LOG, KEY_GENERATIONS_SEEN, seen.into(), None).is_ok()
}

/// Raises the generation, which others have accepted. Returns whether it is durable.
async fn raise(node: &Node) -> bool {
    let cluster = &node.inner.cluster;
    let generations = cluster.peers.liveness().generations();
    let found = StoredGeneration::load(&cluster.store);
    if generations.at_start().number == 0 {
        // The disk was full at the start: the next one begins a lineage that others can check.
        return true;
    }
    let raised = StoredGeneration { number: found.number + 1, accepted: true, ..found };
    match raised.save(&cluster.store).await {
        Ok(()) => generations.raised(raised.number),
        Err(error) => {
            tracing::debug!(%error, "cannot raise the generation of the data directory");
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_no_node_accepted_is_repeated_with_the_same_generation() {
        let first = StoredGeneration::default().next_start(70);
        assert_eq!(first, StoredGeneration { number: 1, lineage: 70, accepted: false, refused: None });
        assert_eq!(first.next_start(71), first);
        let accepted = StoredGeneration { accepted: true, ..first };
        assert_eq!(
            accepted.next_start(72),
            StoredGeneration { number: 2, lineage: 72, accepted: false, refused: None }
        );
    }

    #[test]
    fn a_generation_is_stored_and_read_again() {
        let accepted = StoredGeneration { number: 7, lineage: u64::MAX, accepted: true, refused: None };
        let refused = StoredGeneration { refused: Some("generation 5".into()), ..accepted.clone() };
        for generation in [StoredGeneration::default(), accepted, refused] {
            assert_eq!(StoredGeneration::decode(&generation.encode()), Some(generation));
        }
        assert_eq!(StoredGeneration::decode(&[1; 16]), None);
    }
}
