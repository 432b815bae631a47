//! Measures how long opening a large log takes: after a clean close, and after the process was killed while appending.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chronicle_log::{Durability, LogConfig, LogError, LogPosition, StoreConfig};
use rustix::fs::{Advice, fadvise};

use super::Bench;
use super::disk::noise;
use super::engine::{Appender, log_id, open_store};
use super::report::{Report, Rule};

const ENTRY_BYTES: usize = 1 << 20;

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let gigabytes: u64 = bench.size(10, 1);
    let dir = bench.fresh("open")?;
    fill(&dir, gigabytes << 30)?;

    let mut clean = Vec::new();
    for _ in 0..bench.size(5, 3) {
        forget_cache(&dir)?;
        let (seconds, position) = open(&dir)?;
        ensure!(position.bytes >= gigabytes << 30, "the log has only {} bytes", position.bytes);
        clean.push(seconds * 1e3);
    }
    let clean = report.figure(format!("engine: open {gigabytes} GiB closed cleanly, cold cache"), "ms", clean);
    report.target(format!("engine: open {gigabytes} GiB closed cleanly"), clean / 1e3, Rule::AtMost, 1.0, "s");

    let [mut killed, mut raw] = [const { Vec::new() }; 2];
    for _ in 0..bench.size(3, 1) {
        let tail = append_and_kill(&dir)?;
        forget_cache(&dir)?;
        let start = Instant::now();
        std::io::copy(&mut File::open(&tail)?, &mut std::io::sink())?;
        raw.push(start.elapsed().as_secs_f64() * 1e3);
        forget_cache(&dir)?;
        killed.push(open(&dir)?.0 * 1e3);
    }
    report.figure("disk: read the newest segment of it, cold cache", "ms", raw);
    report.figure(format!("engine: open {gigabytes} GiB after kill -9 while appending, cold cache"), "ms", killed);
    fs::remove_dir_all(dir)?;
    Ok(())
}

/// Opens the log and returns the seconds until its position is known, and the position. Closes it again.
fn open(dir: &Path) -> Result<(f64, LogPosition)> {
    let start = Instant::now();
    let store = open_store(dir, StoreConfig::default())?;
    let log = store.open_log(log_id(0), LogConfig::default())?;
    let position = log.position();
    let seconds = start.elapsed().as_secs_f64();
    log.close()?;
    drop(log);
    store.close()?;
    Ok((seconds, position))
}

fn fill(dir: &Path, bytes: u64) -> Result<()> {
    let store = open_store(dir, StoreConfig::default())?;
    let durability = Durability::Memory { flush_interval: Duration::from_secs(1) };
    let log = store.open_log(log_id(0), LogConfig { durability, ..LogConfig::default() })?;
    let mut appender = Appender::new(log.clone());
    let payload = [Bytes::from(noise(ENTRY_BYTES))];
    let mut pending: VecDeque<Receiver<Result<(), LogError>>> = VecDeque::new();
    for _ in 0..bytes / ENTRY_BYTES as u64 {
        if pending.len() == 8 {
            pending.pop_front().context("eight are pending")?.recv()??;
        }
        pending.push_back(appender.append(&payload, 1024)?);
    }
    for outcome in pending {
        outcome.recv()??;
    }
    log.close()?;
    drop((log, appender));
    store.close()?;
    Ok(())
}

/// Appends durable entries until killed; the body of the child process.
pub(crate) fn append_until_killed(dir: &Path) -> Result<()> {
    let store = open_store(dir, StoreConfig::default())?;
    let mut appender = Appender::new(store.open_log(log_id(0), LogConfig::default())?);
    let payload = [Bytes::from(noise(ENTRY_BYTES))];
    loop {
        appender.append(&payload, 1024)?.recv()??;
    }
}

/// Lets another process append until it has filled half of a new segment, kills it and returns that segment's file.
fn append_and_kill(dir: &Path) -> Result<std::path::PathBuf> {
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let before = newest_segment(dir)?;
    let child =
        Command::new(std::env::current_exe()?).arg("--append-until-killed").arg(dir).stdin(Stdio::null()).spawn()?;
    let mut child = Killed(child);
    loop {
        let segment = newest_segment(dir)?;
        if segment != before && fs::metadata(&segment)?.len() > 64 << 20 {
            return Ok(segment);
        }
        ensure!(child.0.try_wait()?.is_none(), "the appending process ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn newest_segment(dir: &Path) -> Result<std::path::PathBuf> {
    let mut segments: Vec<_> =
        files(dir)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    segments.sort();
    segments.pop().context("the log has no segment")
}

/// Drops the page cache of every file, so that opening reads the disk.
fn forget_cache(dir: &Path) -> Result<()> {
    for path in files(dir)? {
        let file = File::open(path)?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn files(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}
