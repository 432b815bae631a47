//! A small pool of threads that flush many files at once.
//!
//! Promise: [`FlushPool::flush`] returns after every target was flushed or failed, with the results in the order of the targets.
//! Neighbours: `round.rs` uses it. Names no log.
//!
//! File systems merge the journal commits of concurrent flushes, so that eight threads flush a thousand files several times
//! faster than one.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::{Condvar, Mutex};

use crate::disk::{Disk, DiskFile};

/// Something to make durable.
#[derive(Debug)]
pub(crate) enum Target {
    File(Arc<dyn DiskFile>),
    /// The names in a directory.
    Dir(Arc<dyn Disk>, PathBuf),
}

impl Target {
    pub(crate) fn flush(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_data(),
            Self::Dir(disk, path) => disk.sync_dir(path),
        }
    }
}

struct FlushJob {
    targets: Vec<Target>,
    next: AtomicUsize,
    results: Mutex<Vec<(usize, io::Result<()>)>>,
    finished: Condvar,
}

impl FlushJob {
    /// Flushes targets until none is left to take.
    fn work(&self) {
        let mut done = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(target) = self.targets.get(at) else { break };
            done.push((at, target.flush()));
        }
        if !done.is_empty() {
            self.results.lock().extend(done);
            self.finished.notify_all();
        }
    }
}

#[derive(Default)]
struct Work {
    batch: Option<Arc<FlushJob>>,
    /// Counts batches, so that each thread works on each once.
    number: u64,
    stop: bool,
}

#[derive(Default)]
struct Board {
    work: Mutex<Work>,
    posted: Condvar,
}

/// The pool; its owner flushes along with the threads.
pub(crate) struct FlushPool {
    board: Arc<Board>,
    threads: Vec<JoinHandle<()>>,
}

impl FlushPool {
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let mut pool = Self { board: Arc::default(), threads: Vec::new() };
        for at in 0..threads {
            let board = pool.board.clone();
            let thread = std::thread::Builder::new().name(format!("log-flush-{at}"));
            pool.threads.push(thread.spawn(move || board.run())?);
        }
        Ok(pool)
    }

    /// Flushes every target; results stand in the order of targets.
    pub(crate) fn flush(&self, targets: Vec<Target>) -> Vec<io::Result<()>> {
        let count = targets.len();
        let batch = Arc::new(FlushJob {
            targets,
            next: AtomicUsize::new(0),
            results: Mutex::new(Vec::with_capacity(count)),
            finished: Condvar::new(),
        });
        {
            let mut work = self.board.work.lock();
            work.batch = Some(batch.clone());
            work.number += 1;
        }
        self.board.posted.notify_all();
        batch.work();
        let mut results = batch.results.lock();
        while results.len() < count {
            batch.finished.wait(&mut results);
        }
        self.board.work.lock().batch = None;
        let mut results = std::mem::take(&mut *results);
        results.sort_unstable_by_key(|(at, _)| *at);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

impl Board {
    fn run(&self) {
        let mut seen = 0;
        loop {
            let mut work = self.work.lock();
            while (work.number == seen || work.batch.is_none()) && !work.stop {
                self.posted.wait(&mut work);
            }
            if work.stop {
                return;
            }
            seen = work.number;
            let batch = work.batch.clone();
            drop(work);
            if let Some(batch) = batch {
                batch.work();
            }
        }
    }
}

impl Drop for FlushPool {
    fn drop(&mut self) {
        self.board.work.lock().stop = true;
        self.board.posted.notify_all();
        for thread in self.threads.drain(..) {
            // The panic hook has reported a panic of the thread.
            let _ = thread.join();
        }
    }
}
