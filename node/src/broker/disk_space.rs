//! Admission by free space: appends are rejected before the volume is so full that the node cannot write its own state.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chronicle_log::Store;
use tokio::time::Instant;

use crate::config::Live;
use crate::model::{ApiError, Reason};

/// How long one measurement is used. A volume fills by at most a few GB/s, so the reserve (64 MiB) and
/// the limit on unflushed bytes leave room for appends that are accepted until the next one.
const FRESH: Duration = Duration::from_millis(20);

/// Measures the free space of the data directory's volume.
pub(super) struct DiskSpace {
    config: Live,
    start: Instant,
    checked_us: AtomicU64,
    full: AtomicBool,
    free_bytes: AtomicU64,
}

impl DiskSpace {
    pub(super) fn new(config: Live) -> Self {
        Self {
            config,
            start: Instant::now(),
            checked_us: AtomicU64::new(0),
            full: AtomicBool::new(false),
            free_bytes: AtomicU64::new(u64::MAX),
        }
    }

    fn reserve_bytes(&self) -> u64 {
        self.config.now().storage.reserve_bytes
    }

    /// Returns an error while fewer bytes than the reserve (`storage.reserve-bytes`) are free.
    pub(super) fn check(&self, store: &Store) -> Result<(), ApiError> {
        let now = self.start.elapsed().as_micros() as u64 + 1;
        let checked = self.checked_us.load(Ordering::Relaxed);
        if checked == 0 || now.saturating_sub(checked) > FRESH.as_micros() as u64 {
            self.checked_us.store(now, Ordering::Relaxed);
            match store.free_bytes() {
                Ok(free) => {
                    self.free_bytes.store(free, Ordering::Relaxed);
                    let reserve_bytes = self.reserve_bytes();
                    let full = free < reserve_bytes;
                    if self.full.swap(full, Ordering::Relaxed) != full {
                        tracing::warn!(free, reserve = reserve_bytes, full, "free space crossed the reserve");
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot read free space"),
            }
        }
        if !self.full.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (free, reserve_bytes) = (self.free_bytes.load(Ordering::Relaxed), self.reserve_bytes());
        Err(ApiError::new(
            Reason::DiskFull,
            format!("free space: {free} bytes: must be at least {reserve_bytes} (storage.reserve-bytes)"),
        )
        .with("free", free))
    }
}
