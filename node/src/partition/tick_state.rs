//! State between two ticks of an open partition ([`super::tick`]).

use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::replica_lag::ReplicaLags;
use crate::cluster::Watcher;

/// State between two ticks of one partition.
pub(super) struct TickState {
    pub(super) watcher: Watcher,
    /// Bytes of the log when the last checkpoint was started, and when that was.
    pub(super) checkpoint: Mutex<(u64, Option<Instant>)>,
    /// A checkpoint is being saved.
    pub(super) saving: AtomicBool,
    /// Segments below the agreed start are being deleted.
    pub(super) deleting: AtomicBool,
    /// The members are being changed, or leadership is being transferred.
    pub(super) changing: AtomicBool,
    /// The replica that should lead instead, and since when.
    pub(super) preferred: Mutex<Option<(u64, Instant)>>,
    /// Lags of the other replicas, while this node leads.
    pub(super) lags: Mutex<ReplicaLags>,
}

impl TickState {
    pub(super) fn new(resting: bool) -> Self {
        Self {
            watcher: Watcher::new(resting),
            checkpoint: Mutex::new((0, None)),
            saving: AtomicBool::new(false),
            deleting: AtomicBool::new(false),
            changing: AtomicBool::new(false),
            preferred: Mutex::new(None),
            lags: Mutex::default(),
        }
    }
}
