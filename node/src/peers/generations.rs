//! The generations of data directories that nodes have shown, and the detection of directories that were rolled back.
//!
//! A node raises the generation in its data directory, durably, when it starts, before it answers anything; then at an interval
//! while it stores entries, and when it stops ([`DiskGeneration`]). It shows the generation in every request and heartbeat. Each
//! node keeps the latest that it has seen of every other one (`runtime/generation.rs` keeps it on disk; the controller agrees on
//! it), and refuses a node that shows one which continues an older directory. The check is between two nodes, with what each of
//! them knows: nobody waits for an agreement.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::metadata::DiskGeneration;

/// The gRPC metadata keys of a generation, in requests and responses.
const BOOT: &str = "chronicle-boot";
const GENERATION: &str = "chronicle-generation";

/// A node shows a generation of its data directory that continues an older one than it has shown before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node} shows generation {} of its data directory, and the cluster has seen {} of another process: an older copy or a \
     snapshot was put back, or a copy of the directory has run since. It may have forgotten acknowledged records and votes. Empty the \
     directory, and the node returns as a new one with the records of the others; to restore a whole cluster, see \
     docs/operations/restore.md",
    .shown.number, .seen.number
)]
pub struct RolledBack {
    /// Raft id of the node.
    pub node: u64,
    /// What it shows.
    pub shown: DiskGeneration,
    /// What it has shown before.
    pub seen: DiskGeneration,
}

/// This node's generation, and the latest that it has seen of others.
#[derive(Debug)]
pub struct Generations {
    /// When this process started; number 0: not known.
    start: DiskGeneration,
    now: AtomicU64,
    /// Another node that checks it has accepted this process.
    accepted: watch::Sender<bool>,
    seen: Mutex<BTreeMap<u64, DiskGeneration>>,
    /// Counts changes of `seen`.
    changes: AtomicU64,
}

impl Generations {
    /// `start`: of this node's data directory, with the number of this process. Number 0: not known, other nodes do not check it.
    pub fn new(start: DiskGeneration) -> Self {
        let (accepted, seen, changes) = (watch::Sender::new(false), Mutex::default(), AtomicU64::default());
        Self { start, now: start.number.into(), accepted, seen, changes }
    }

    /// Returns the generation of this node when its process started.
    pub fn at_start(&self) -> DiskGeneration {
        self.start
    }

    /// Returns the generation of this node.
    pub fn own(&self) -> DiskGeneration {
        DiskGeneration { number: self.now.load(Ordering::Acquire), ..self.start }
    }

    /// Sets the number of this node's generation, which must be durable.
    pub fn raised(&self, number: u64) {
        self.now.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether another node that checks the generation has accepted this process, now and when that changes.
    pub fn accepted(&self) -> watch::Receiver<bool> {
        self.accepted.subscribe()
    }

    /// Records that a node with this generation has accepted this process.
    pub(super) fn accepted_by(&self, other: DiskGeneration) {
        if other.number > 0 && !*self.accepted.borrow() {
            self.accepted.send_replace(true);
        }
    }

    /// Takes over what is known of other nodes from elsewhere: the data directory, or the controller.
    pub fn learn(&self, node: u64, generation: DiskGeneration) {
        let mut seen = self.seen.lock();
        let known = seen.entry(node).or_default();
        let before = *known;
        known.advance(generation);
        if *known != before {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Checks what a node shows, and remembers it.
    ///
    /// # Errors
    /// Its data directory was rolled back.
    pub fn observe(&self, node: u64, shown: DiskGeneration) -> Result<(), RolledBack> {
        self.check(node, shown)?;
        self.learn(node, shown);
        Ok(())
    }

    /// Checks what a node shows.
    ///
    /// # Errors
    /// Its data directory was rolled back.
    pub fn check(&self, node: u64, shown: DiskGeneration) -> Result<(), RolledBack> {
        match self.seen.lock().get(&node) {
            Some(seen) if shown.behind(seen) => Err(RolledBack { node, shown, seen: *seen }),
            _ => Ok(()),
        }
    }

    /// Returns the latest generation that each other node has shown, by raft id.
    pub fn seen(&self) -> BTreeMap<u64, DiskGeneration> {
        self.seen.lock().clone()
    }

    /// Returns a number that changes whenever the result of [`Generations::seen`] does.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

/// Adds a generation to the metadata of a request or response.
pub(super) fn show(metadata: &mut MetadataMap, generation: DiskGeneration) {
    let DiskGeneration { number, lineage, boot } = generation;
    metadata.insert(BOOT, MetadataValue::from(boot));
    if number > 0 {
        let text = MetadataValue::try_from(format!("{number}/{lineage}")).expect("digits are ASCII");
        metadata.insert(GENERATION, text);
    }
}

/// Returns the generation in the metadata of a request or response; one with number 0 when there is none.
pub(super) fn shown(metadata: &MetadataMap) -> DiskGeneration {
    let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
    let boot = text(BOOT).and_then(|boot| boot.parse().ok()).unwrap_or(0);
    let generation = text(GENERATION).and_then(|text| text.split_once('/'));
    let generation = generation.and_then(|(number, lineage)| Some((number.parse().ok()?, lineage.parse().ok()?)));
    let (number, lineage) = generation.unwrap_or((0, 0));
    DiskGeneration { number, lineage, boot }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: u64, boot: u64) -> DiskGeneration {
        DiskGeneration { number, lineage: 2 * boot, boot }
    }

    #[test]
    fn a_node_is_refused_that_shows_less_than_was_seen_or_learned_of_it() {
        let generations = Generations::new(of(1, 1));
        generations.observe(2, of(4, 20)).unwrap();
        generations.observe(2, of(6, 20)).unwrap();
        let refused = generations.observe(2, of(5, 21)).unwrap_err();
        assert_eq!((refused.shown, refused.seen), (of(5, 21), of(6, 20)));
        assert!(
            refused.to_string().contains("generation 5 of its data directory, and the cluster has seen 6"),
            "{refused}"
        );
        generations.observe(2, of(4, 20)).unwrap();
        generations.observe(2, of(0, 21)).unwrap();
        assert_eq!(
            generations.seen(),
            BTreeMap::from([(2, of(6, 20))]),
            "a refused node and an old version change nothing"
        );
        let before = generations.changes();
        generations.learn(3, of(9, 30));
        generations.learn(3, of(8, 31));
        assert_eq!(generations.changes(), before + 1);
        generations.observe(3, of(9, 31)).unwrap_err();
        generations.observe(3, of(10, 31)).unwrap();
        generations.observe(3, of(9, 30)).unwrap_err();
    }

    #[test]
    fn a_generation_travels_in_metadata() {
        let mut metadata = MetadataMap::new();
        assert_eq!(shown(&metadata), of(0, 0));
        show(&mut metadata, of(0, 7));
        assert_eq!(shown(&metadata), DiskGeneration { boot: 7, ..of(0, 0) });
        show(&mut metadata, of(3, 7));
        assert_eq!(shown(&metadata), of(3, 7));
        for wrong in ["3", "3/", "-1/4", "x/y"] {
            metadata.insert(GENERATION, MetadataValue::from_static(wrong));
            assert_eq!(shown(&metadata), DiskGeneration { boot: 7, ..of(0, 0) }, "{wrong}");
        }
    }
}
