//! How fast a log takes a bulk fill, against plain sequential writes of the same bytes to the same volume.
//!
//! ```text
//! cargo run --release -p chronicle-log --example bulk_append -- <directory> [MiB] [entry bytes]
//! ```
//!
//! Appends runs of 4 MiB with memory durability, a few of them under way at once, flushes at the end and waits for all
//! segments to be sealed. The yardstick writes the same bytes in 4 MiB pieces to one file per segment, and flushes each. The two take
//! turns, three times; the best of each counts.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::{
    error::Error,
    fs::File,
    io::Write,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chronicle_log::{Durability, Entry, EntryKind, LogConfig, LogId, Store, StoreConfig, disk::RealDisk};
use uuid::Uuid;

const RUN: usize = 4 << 20;
const UNDER_WAY: usize = 4;
const ROUNDS: usize = 3;

fn plain(dir: &Path, total: usize, segment: usize) -> Result<Duration, Box<dyn Error>> {
    let block = vec![0x5a; RUN];
    let started = Instant::now();
    for number in 0..total.div_ceil(segment) {
        let mut file = File::create(dir.join(format!("plain-{number}")))?;
        for _ in 0..segment / RUN {
            file.write_all(&block)?;
        }
        file.sync_data()?;
    }
    Ok(started.elapsed())
}

/// Time until everything was flushed, and until everything was sealed too.
fn fill(dir: &Path, total: usize, entry_bytes: usize) -> Result<(Duration, Duration), Box<dyn Error>> {
    let store = Store::open(Arc::new(RealDisk), dir, StoreConfig::default())?;
    let durability = Durability::Memory { flush_interval: Duration::from_secs(1) };
    let id = LogId { topic: Uuid::from_u128(1), partition: 0 };
    let log = store.open_log(id, LogConfig { durability, ..LogConfig::default() })?;
    let payload = Bytes::from(vec![0x5a; entry_bytes]);
    let per_run = (RUN / (entry_bytes + 72)).max(1) as u64;
    let (sender, receiver) = mpsc::channel();
    let started = Instant::now();
    let (mut index, mut under_way) = (0, 0);
    while index as usize * (entry_bytes + 72) < total {
        let entry = |index| Entry {
            term: 1,
            leader: 1,
            index,
            kind: EntryKind::Data,
            record_count: 1,
            max_timestamp: 0,
            payload: payload.clone(),
        };
        if under_way == UNDER_WAY {
            receiver.recv()??;
            under_way -= 1;
        }
        let sender = sender.clone();
        let done = Box::new(move |result| drop(sender.send(result)));
        log.append((index..index + per_run).map(entry).collect(), done)?;
        index += per_run;
        under_way += 1;
    }
    log.flush()?;
    let flushed = started.elapsed();
    log.roll()?;
    log.close()?;
    let sealed = started.elapsed();
    store.close()?;
    Ok((flushed, sealed))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: bulk_append <directory> [MiB] [entry bytes]")?;
    let total = arguments.next().map_or(Ok(1024), |mib| mib.parse::<usize>())? << 20;
    let entry_bytes = arguments.next().map_or(Ok(64 << 10), |bytes| bytes.parse::<usize>())?;
    let dir = Path::new(&dir).join("bulk-append");
    let mib = |took: Duration| total as f64 / f64::from(1 << 20) / took.as_secs_f64();
    let (mut best_plain, mut best_flushed, mut best_sealed) = (0.0_f64, 0.0_f64, 0.0_f64);
    for _ in 0..ROUNDS {
        std::fs::create_dir_all(&dir)?;
        best_plain = best_plain.max(mib(plain(&dir, total, 128 << 20)?));
        std::fs::remove_dir_all(&dir)?;
        std::fs::create_dir_all(&dir)?;
        let (flushed, sealed) = fill(&dir, total, entry_bytes)?;
        best_flushed = best_flushed.max(mib(flushed));
        best_sealed = best_sealed.max(mib(sealed));
        std::fs::remove_dir_all(&dir)?;
    }
    println!(
        "{} MiB, entries of {entry_bytes} bytes, MiB/s: plain {best_plain:.0}, flushed {best_flushed:.0}, sealed {best_sealed:.0}",
        total >> 20
    );
    println!("flushed / plain = {:.2}, sealed / plain = {:.2}", best_flushed / best_plain, best_sealed / best_plain);
    Ok(())
}
