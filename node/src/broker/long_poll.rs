//! Waits until partitions contain more than was read: for long polls over one partition or many.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Broker;
use crate::model::{Position, Want};
use crate::partition::{Partition, Progress};

/// How many bytes a wait reads at a time to count them.
const COUNTED_AT_ONCE: usize = 1 << 20;

/// A partition to wait for, and the offset from which.
pub(super) struct Waited {
    partition: Arc<Partition>,
    updates: watch::Receiver<Progress>,
    offset: u64,
    /// The entries before this offset are counted.
    counted_to: u64,
    /// Bytes of their payloads.
    bytes: u64,
}

impl Waited {
    pub(super) fn new(partition: Arc<Partition>, offset: u64) -> Self {
        let updates = partition.progress();
        Self { partition, updates, offset, counted_to: offset, bytes: 0 }
    }

    /// How many bytes are available to read, counted no further than `min_bytes`; `None`: a read returns an error, which
    /// the read itself reports.
    async fn available(&mut self, min_bytes: usize) -> Option<u64> {
        let progress = *self.updates.borrow_and_update();
        if self.offset == progress.next_offset {
            return Some(0);
        }
        if self.offset > progress.next_offset || self.offset < self.partition.log_start() {
            return None;
        }
        if min_bytes <= 1 {
            return Some(1);
        }
        let min_bytes = min_bytes as u64;
        while self.counted_to < progress.next_offset && self.bytes < min_bytes {
            let missing = usize::try_from(min_bytes - self.bytes).unwrap_or(COUNTED_AT_ONCE);
            let entries = self.partition.read(self.counted_to, progress, missing.min(COUNTED_AT_ONCE)).await.ok()?;
            self.counted_to = entries.last()?.next_offset();
            self.bytes += entries.iter().map(|stored| stored.entry.payload.len() as u64).sum::<u64>();
        }
        Some(self.bytes)
    }

    /// Waits for a change; `false`: the partition stops.
    async fn changed(mut self, at: usize) -> (usize, Self, bool) {
        let changed = tokio::select! {
            biased;
            () = self.partition.stopped() => false,
            changed = self.updates.changed() => changed.is_ok(),
        };
        (at, self, changed)
    }
}

impl Broker {
    /// Waits until the partitions together contain at least `min_bytes` of batches behind the start offsets of the wants.
    /// Also ends when a read of one of them would return an error, a partition stops, or at `deadline`. Each want
    /// starts at an offset: the next one of the answer of [`Broker::read_now`]. Safe to drop.
    pub async fn wait_any(&self, wants: &[Want], min_bytes: usize, deadline: Instant) {
        let mut waited = Vec::with_capacity(wants.len());
        for want in wants {
            let Position::Offset(offset @ 0..) = want.from else { return };
            let Ok(topic) = self.topic(&want.target).await else { return };
            let Ok(partition) = self.partition(&topic, want.target.partition).await else { return };
            waited.push(Waited::new(partition, offset as u64));
        }
        self.wait_for(waited, min_bytes, deadline).await;
    }

    /// As [`Broker::wait_any`]; `false`: the wait ended for another reason than that there is something to read.
    pub(super) async fn wait_for(&self, waited: Vec<Waited>, min_bytes: usize, deadline: Instant) -> bool {
        let mut available = vec![0; waited.len()];
        let mut total = 0u64;
        let mut waiting = FuturesUnordered::new();
        for (at, mut waited) in waited.into_iter().enumerate() {
            let Some(bytes) = waited.available(min_bytes).await else { return true };
            available[at] = bytes;
            total += bytes;
            waiting.push(waited.changed(at));
        }
        while total < min_bytes as u64 {
            // Without partitions the wait lasts until the deadline.
            let (at, mut waited, changed) = tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return false,
                Some(changed) = waiting.next() => changed,
                () = tokio::time::sleep_until(deadline) => return false,
            };
            if !changed {
                return false;
            }
            let Some(bytes) = waited.available(min_bytes).await else { return true };
            total = total - available[at] + bytes;
            available[at] = bytes;
            waiting.push(waited.changed(at));
        }
        true
    }
}
