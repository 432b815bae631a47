//! What is remembered between two looks at an open partition ([`super::look_after`]).

use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::lag::ReplicaLags;
use crate::cluster::Watcher;

/// What is remembered between two looks at one partition.
pub(super) struct Upkeep {
    pub(super) watcher: Watcher,
    /// Bytes of the log when the last checkpoint was begun, and when that was.
    pub(super) checkpoint: Mutex<(u64, Option<Instant>)>,
    /// A checkpoint is being saved.
    pub(super) saving: AtomicBool,
    /// The members change, or leadership is handed over.
    pub(super) changing: AtomicBool,
    /// Since when another replica should lead.
    pub(super) preferred: Mutex<Option<(u64, Instant)>>,
    /// How far the others are behind, while this node leads.
    pub(super) lags: Mutex<ReplicaLags>,
}

impl Upkeep {
    pub(super) fn new(resting: bool) -> Self {
        Self {
            watcher: Watcher::new(resting),
            checkpoint: Mutex::new((0, None)),
            saving: AtomicBool::new(false),
            changing: AtomicBool::new(false),
            preferred: Mutex::new(None),
            lags: Mutex::default(),
        }
    }
}
