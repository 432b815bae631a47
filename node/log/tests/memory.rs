//! What a log costs in memory while it is closed: thousands of them sleep in one store.

#[path = "log/common/mod.rs"]
mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use chronicle_log::{Clock, LogConfig, Store, StoreConfig, Threads, disk::RealDisk};
use common::*;

/// The system's allocator, counting the bytes in use.
struct Counting;

static IN_USE: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator; the count beside it touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: the caller keeps the promises of `dealloc`, and `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LOGS: u32 = 150;

/// Time that stands still until it is moved: timers for logs that were used end when the test says so.
#[derive(Debug, Default)]
struct ManualClock(AtomicI64);

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed) as u64)
    }

    fn wall_ms(&self) -> i64 {
        0
    }
}

fn store(dir: &Path, clock: &Arc<ManualClock>) -> Arc<Store> {
    let threads = Threads::Driven { on_work: None };
    let config = StoreConfig { segment_bytes: 16 << 10, clock: clock.clone(), threads, ..StoreConfig::default() };
    Store::open(Arc::new(RealDisk), dir, config).unwrap()
}

/// Opens every log, writes to it, keeps a few small facts beside it as raft does, and closes it.
fn use_all(store: &Arc<Store>, clock: &ManualClock) {
    for n in 0..LOGS {
        let log = store.open_log(id(n), LogConfig::default()).unwrap();
        let next = log.position().next_index;
        append(&log, (next..next + 100).map(sample).collect()).unwrap();
        log.flush().unwrap();
        log.read(next, next + 100, usize::MAX).unwrap();
        for key in 0..3 {
            store.journal_put(id(n), key, Bytes::from(vec![n as u8; 32]), None).unwrap();
        }
        log.close().unwrap();
    }
    clock.0.fetch_add(10, Relaxed);
    while store.drive() {}
}

fn per_log(before: i64) -> i64 {
    (IN_USE.load(Relaxed) - before) / i64::from(LOGS)
}

#[test]
fn a_closed_log_takes_less_than_a_kibibyte() {
    // What a flush costs is of no interest here: in memory, where that is to be had.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let clock = Arc::default();
    drop(store(dir.path(), &clock));
    let before = IN_USE.load(Relaxed);

    let open = store(dir.path(), &clock);
    use_all(&open, &clock);
    let first = per_log(before);
    use_all(&open, &clock);
    let again = per_log(before);
    open.close().unwrap();
    drop(open);
    let open = store(dir.path(), &clock);
    let reopened = per_log(before);
    println!("bytes per closed log: {first} after one use, {again} after two, {reopened} in a store opened anew");
    assert!(first < 1024, "{first} bytes after one use");
    assert!(again < 1024, "{again} bytes after two uses");
    assert!(reopened < 1024, "{reopened} bytes in a store opened anew");
    open.close().unwrap();
}
