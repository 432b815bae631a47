//! A data directory, open: the logs in it, the journal, and the threads that serve them.
//!
//! ```text
//! <data>/LOCK                held by the one process that uses the directory
//! <data>/FORMAT              format version and node id, as text
//! <data>/meta/journal-<n>    the meta journal
//! <data>/logs/<log id>/      one directory per log: segments, indexes, checkpoint
//! ```

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use crate::{
    Cut, Done, Log, LogConfig, LogError, LogId, StoreConfig, StoreMetrics,
    disk::{DirLock, Disk, OpenMode, write_all_at},
    driver::Driver,
    files::OpenFiles,
    frame::Expect,
    journal::{JournalFile, Space, engine_key},
    log::{CleanMark, LogInner, State, Writer, prune_quarantines},
    scheduler::{Queue, Scheduler},
    sealer::SealQueue,
    shared::{Shared, waiter},
};

/// Newest format of a data directory this release reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

/// The place of a log of which nothing is known.
const NOWHERE: Expect = Expect { index: 0, offset: 0, prev_crc: 0 };

/// What is known of a log that is not open, without looking at its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSummary {
    /// First index stored.
    pub first_index: u64,
    /// Index that the next append must start with (exclusive end).
    pub next_index: u64,
    /// First offset stored.
    pub start_offset: u64,
    /// Offset that the next record takes (exclusive end).
    pub next_offset: u64,
    /// Bytes of segment files.
    pub bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Greatest timestamp of any data entry, in ms since the Unix epoch; `None` if there is none.
    pub max_timestamp: Option<i64>,
    /// Greatest timestamp of the oldest segment that has data entries, in ms since the Unix epoch; `None` if there is none.
    /// What retention by age looks at first.
    pub oldest_segment_max_timestamp: Option<i64>,
}

/// One data directory. Dropping it without [`Store::close`] flushes what is pending and stops its threads, but leaves logs that
/// are still open to be scanned next time.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn DirLock>>>,
}

impl Store {
    /// Opens a data directory, making it if it does not exist.
    ///
    /// # Errors
    /// [`LogError::Locked`] when another process has it open, [`LogError::NewerFormat`], [`LogError::ReadOnly`],
    /// [`LogError::NotADirectory`], [`LogError::Damaged`] when the journal is, [`LogError::InvalidConfig`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, config: StoreConfig) -> Result<Arc<Self>, LogError> {
        config.validate()?;
        disk.create_dir(dir).map_err(|error| open_error(dir, "create the data directory", error))?;
        let lock_path = dir.join("LOCK");
        let lock = disk.lock(&lock_path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LogError::Locked { path: dir.to_owned() },
            _ => open_error(&lock_path, "lock the data directory", error),
        })?;
        let volume = disk.volume(dir).map_err(|error| LogError::io(dir, "open the volume", error))?;
        let (meta, logs) = (dir.join("meta"), dir.join("logs"));
        let format = read_format(&*disk, dir)?;
        for path in [&meta, &logs] {
            disk.create_dir(path).map_err(|error| open_error(path, "create the directory", error))?;
        }
        let fresh = format.is_none();
        if fresh && !list_dir(&*disk, &logs)?.is_empty() {
            let reason = "the directory holds logs, but its FORMAT file is missing";
            return Err(LogError::damaged(dir.join("FORMAT"), 0, None, reason));
        }
        #[expect(clippy::disallowed_methods, reason = "a new data directory without a given identity")]
        let node_id = format.or(config.new_node_id).unwrap_or_else(Uuid::new_v4);
        let rewrite = config.journal_rewrite_bytes;
        let (journal, journal_file) = JournalFile::open(disk.clone(), &meta, node_id, rewrite, fresh)?;
        if fresh {
            // Last, so that a directory with a FORMAT is complete.
            write_format(&*disk, dir, node_id)?;
        }

        // Names left by a process that was killed may be in memory only.
        disk.sync_dir(&logs).map_err(|error| LogError::io(&logs, "flush the directory", error))?;
        let durable_dirs = list_dir(&*disk, &logs)?.iter().filter_map(|name| name.parse().ok()).collect();
        let files = OpenFiles::new(config.open_segments);
        let on_work = config.threads.on_work();
        let shared = Arc::new(Shared {
            disk,
            dir: dir.to_owned(),
            node_id,
            config,
            metrics: StoreMetrics::default(),
            journal,
            queue: Queue::new(on_work.clone()),
            sealer: SealQueue::new(on_work),
            driver: Driver::default(),
            files,
            volume,
            open: Mutex::default(),
            durable_dirs: Mutex::new(durable_dirs),
            failed: Mutex::default(),
        });
        let thread_failed = |error| LogError::io(dir, "start a thread", error);
        let scheduler = Scheduler::new(shared.clone(), journal_file).map_err(thread_failed)?;
        let store = Arc::new(Self { shared, threads: Mutex::default(), lock: Mutex::new(Some(lock)) });
        if store.shared.is_driven() {
            store.shared.driver.start(scheduler);
        } else {
            store.spawn("log-writer", move || scheduler.run()).map_err(thread_failed)?;
            let shared = store.shared.clone();
            store.spawn("log-sealer", move || shared.sealer.run(&shared)).map_err(thread_failed)?;
        }
        store.finish_deletions()?;
        Ok(store)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// The identity that the directory got when it was made.
    pub fn node_id(&self) -> Uuid {
        self.shared.node_id
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Opens a log, making it if it does not exist and recovering it if it was not closed.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when entries that were durable are bad or missing, [`LogError::AlreadyOpen`],
    /// [`LogError::InvalidConfig`].
    pub fn open_log(&self, id: LogId, config: LogConfig) -> Result<Arc<Log>, LogError> {
        let shared = &self.shared;
        if config.segment_bytes != 0 && config.segment_bytes < 1024 {
            let rule = "it must be 0 or at least 1024";
            return Err(LogError::InvalidConfig { field: "segment_bytes", value: config.segment_bytes, rule });
        }
        if let Some(failure) = shared.journal.failure() {
            return Err(failure.sticky());
        }
        let inner = self.claim(id, config)?;
        let dir = &inner.dir;
        let opened = (|| -> Result<_, LogError> {
            shared.disk.create_dir(dir).map_err(|error| open_error(dir, "create the log's directory", error))?;
            let known_durable = shared.failed.lock().get(&id).copied();
            let recovered = inner.recover(known_durable)?;
            if recovered.first_segment {
                inner.make_dir_durable()?;
            }
            Ok(recovered)
        })();
        match opened {
            Ok(recovered) => {
                shared.failed.lock().remove(&id);
                let mut state = inner.state.lock();
                *state = recovered.state;
                // What recovery took over counts as acknowledged from now on: vouch for it as if the log had gone idle.
                if state.durable_next > state.marked {
                    let end = Bytes::copy_from_slice(&state.durable_next.to_le_bytes());
                    let key = (id, Space::Engine, engine_key::DURABLE_MARK);
                    let due = shared.config.clock.monotonic() + shared.config.idle_mark_delay;
                    // If the journal cannot take it now, the next time that the log goes idle brings it again.
                    if let Ok(wake) = shared.journal.put(key, Some(end), false, due, None) {
                        state.marked = state.durable_next;
                        if wake {
                            shared.queue.wake();
                        }
                    }
                }
                inner.request_seals(&mut state);
                drop(state);
                inner.changed.notify_all();
                Ok(Arc::new(Log { inner }))
            }
            Err(error) => {
                self.unclaim(&inner);
                Err(error)
            }
        }
    }

    /// Takes the log's place among the open ones, after one that was dropped has come to rest. Nobody else can reach the
    /// log's files until [`Self::unclaim`].
    fn claim(&self, id: LogId, config: LogConfig) -> Result<Arc<LogInner>, LogError> {
        let shared = &self.shared;
        let inner = Arc::new(LogInner {
            id,
            dir: shared.logs_dir().join(id.to_string()),
            config,
            shared: shared.clone(),
            state: Mutex::new(State::empty_at(NOWHERE)),
            changed: Condvar::new(),
            seal_lock: Mutex::new(()),
            dir_durable: AtomicBool::new(shared.durable_dirs.lock().contains(&id)),
        });
        loop {
            let other = {
                let mut open = shared.open.lock();
                match open.get(&id) {
                    None => {
                        open.insert(id, inner.clone());
                        return Ok(inner);
                    }
                    Some(other) if !other.is_closed() => return Err(LogError::AlreadyOpen(id)),
                    Some(other) => other.clone(),
                }
            };
            other.wait_abandoned();
            shared.deregister(&other);
        }
    }

    /// Gives the place of a log back that was claimed and not opened.
    fn unclaim(&self, inner: &Arc<LogInner>) {
        // Somebody who closes the store meanwhile waits for the writer.
        let mut state = inner.state.lock();
        state.closed = true;
        state.writer = Some(Box::new(Writer::idle(NOWHERE)));
        drop(state);
        inner.changed.notify_all();
        self.shared.deregister(inner);
    }

    /// Cuts everything from the first damaged place on out of a closed log whose open answers [`LogError::Damaged`], so that it
    /// opens again, shorter. Good entries before the damage stay. The files are moved to a folder `quarantine-<n>` in the log's
    /// directory (the two newest are kept). Does nothing to a log that is not damaged. A crash at any step leaves a log that
    /// answers [`LogError::Damaged`] still, or is cut.
    ///
    /// Entries below [`Cut::was`] may have been acknowledged: before calling this, the caller notes durably that this replica
    /// must not vote until it has been filled again.
    ///
    /// # Errors
    /// [`LogError::AlreadyOpen`]; [`LogError::Damaged`] when nothing is damaged but a newer release wrote entries that this
    /// one does not know; [`LogError::NewerFormat`]; [`LogError::NoSpace`] and the like: try again, nothing is lost.
    pub fn cut_damaged(&self, id: LogId) -> Result<Cut, LogError> {
        self.cut_out(id, None)
    }

    /// Like [`Store::cut_damaged`], for damage that was found by reading (or by comparing with another replica) at `index`. The
    /// segment that holds `index` is checked: the cut is at its first bad entry, or at `index` if all of it reads well. When
    /// the log is damaged at an earlier place too, the cut is there.
    ///
    /// # Errors
    /// As [`Store::cut_damaged`]. A crash may also leave the log as it was.
    pub fn cut_from(&self, id: LogId, index: u64) -> Result<Cut, LogError> {
        self.cut_out(id, Some(index))
    }

    /// Removes the quarantine folders that cuts left in a log, open or not. They may be as large as the log itself: worth it
    /// once the log has been filled again and nobody wants to look at them, or when the volume is short of space.
    ///
    /// # Errors
    /// [`LogError::Io`] and the like; also when there is no such log.
    pub fn delete_quarantines(&self, id: LogId) -> Result<(), LogError> {
        prune_quarantines(&*self.shared.disk, &self.shared.logs_dir().join(id.to_string()), 0)
    }

    fn cut_out(&self, id: LogId, from: Option<u64>) -> Result<Cut, LogError> {
        if let Some(failure) = self.shared.journal.failure() {
            return Err(failure.sticky());
        }
        let inner = self.claim(id, LogConfig::default())?;
        let known_durable = self.shared.failed.lock().get(&id).copied();
        let cut = inner.cut_out(from, known_durable);
        if cut.is_ok() {
            self.shared.failed.lock().remove(&id);
        }
        self.unclaim(&inner);
        cut
    }

    /// Removes a closed log: its files and its keys in the journal. Complete after a crash once it returned; begun and not
    /// finished, it is finished at the next open of the store. Fine if the log does not exist.
    ///
    /// # Errors
    /// [`LogError::StillOpen`].
    pub fn delete_log(&self, id: LogId) -> Result<(), LogError> {
        if self.shared.open.lock().get(&id).is_some_and(|log| !log.is_closed()) {
            return Err(LogError::StillOpen(id));
        }
        let left = self.shared.open.lock().get(&id).cloned();
        if let Some(log) = left {
            log.wait_abandoned();
            self.shared.deregister(&log);
        }
        self.shared.journal_and_wait(id, engine_key::DELETING, Some(Bytes::new()))?;
        self.finish_deletion(id)
    }

    fn finish_deletion(&self, id: LogId) -> Result<(), LogError> {
        let shared = &self.shared;
        let logs = shared.logs_dir();
        shared.durable_dirs.lock().remove(&id);
        let dir = logs.join(id.to_string());
        let aside = logs.join(format!("{id}.deleted"));
        remove_dir(&*shared.disk, &aside)?;
        match shared.disk.rename(&dir, &aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LogError::io(&dir, "rename the log's directory", error)),
        }
        shared.disk.sync_dir(&logs).map_err(|error| LogError::io(&logs, "flush the directory", error))?;
        shared.failed.lock().remove(&id);
        let (done, answer) = waiter();
        shared.journal.remove_log(id, done)?;
        shared.queue.wake();
        shared.wait_for(&answer)?;
        remove_dir(&*shared.disk, &aside)
    }

    /// Finishes deletions that a crash interrupted.
    fn finish_deletions(&self) -> Result<(), LogError> {
        for id in self.shared.journal.logs_with(engine_key::DELETING) {
            self.finish_deletion(id)?;
        }
        let logs = self.shared.logs_dir();
        for name in list_dir(&*self.shared.disk, &logs)?.into_iter().filter(|name| name.ends_with(".deleted")) {
            remove_dir(&*self.shared.disk, &logs.join(name))?;
        }
        Ok(())
    }

    /// Every log in the directory, open or not, in no particular order.
    ///
    /// # Errors
    /// [`LogError::Io`] when the directory cannot be listed.
    pub fn list_logs(&self) -> Result<Vec<LogId>, LogError> {
        let names = list_dir(&*self.shared.disk, &self.shared.logs_dir())?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// What the journal knows of a log that is not open. `None` when it does not exist, was not closed cleanly, or is open.
    ///
    /// # Errors
    /// None at present; reserved for reading files.
    pub fn summary(&self, id: LogId) -> Result<Option<LogSummary>, LogError> {
        if self.shared.open.lock().contains_key(&id) {
            return Ok(None);
        }
        let mark = self.shared.journal.get((id, Space::Engine, engine_key::CLEAN));
        let summary = |mark: CleanMark| LogSummary {
            first_index: mark.first_index,
            next_index: mark.newest.next_index,
            start_offset: mark.start_offset,
            next_offset: mark.newest.next_offset,
            bytes: mark.bytes,
            segments: mark.segments,
            max_timestamp: (mark.max_timestamp != i64::MIN).then_some(mark.max_timestamp),
            oldest_segment_max_timestamp: (mark.oldest_max_timestamp != i64::MIN).then_some(mark.oldest_max_timestamp),
        };
        Ok(mark.and_then(|mark| CleanMark::decode(&mark)).map(summary))
    }

    /// Puts a small value under a key of a log (which need not be open). Read back at once by [`Store::journal_get`]; `done` is
    /// called when it is durable, and an append made after this call is not durable before it. Without `done` it becomes
    /// durable with a later round, within [`StoreConfig::journal_lazy_delay`].
    ///
    /// When this returns an error nothing was put and `done` is dropped without a call. A `done` that gets
    /// [`LogError::NoSpace`]: not durable yet; it becomes so when there is room.
    ///
    /// # Errors
    /// [`LogError::InvalidConfig`] for a value above [`crate::MAX_JOURNAL_VALUE`], [`LogError::Overloaded`], [`LogError::Failed`].
    pub fn journal_put(&self, id: LogId, key: u8, value: Bytes, done: Option<Done>) -> Result<(), LogError> {
        let shared = &self.shared;
        let urgent = done.is_some();
        let now = shared.config.clock.monotonic();
        let due = if urgent { now } else { now + shared.config.journal_lazy_delay };
        if shared.journal.put((id, Space::User, key), Some(value), urgent, due, done)? {
            shared.queue.wake();
        }
        Ok(())
    }

    /// The newest value put under a key of a log, durable or not.
    pub fn journal_get(&self, id: LogId, key: u8) -> Option<Bytes> {
        self.shared.journal.get((id, Space::User, key))
    }

    /// Bytes that may still be written to the volume.
    ///
    /// # Errors
    /// The operating system's.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.shared.volume.free_bytes()
    }

    /// Size of the volume in bytes.
    ///
    /// # Errors
    /// The operating system's.
    pub fn volume_bytes(&self) -> io::Result<u64> {
        self.shared.volume.size_bytes()
    }

    /// The store's counters.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.shared.metrics
    }

    /// With [`crate::Threads::Driven`]: runs one round of the scheduler, with what is due by the clock, and seals one segment. Returns
    /// whether there was anything to do; `false` in a store with threads. Must not be called by a `done` or by
    /// `on_work`.
    pub fn drive(&self) -> bool {
        self.shared.is_driven() && self.shared.drive()
    }

    /// With [`crate::Threads::Driven`]: when, by the monotonic time of [`StoreConfig::clock`], [`Store::drive`] is to be called at the latest,
    /// unless more work is queued before. `None`: nothing is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.shared.next_due()
    }

    /// Makes timers look at the clock again; for clocks that do not move by themselves.
    pub fn wake(&self) {
        self.shared.queue.wake();
    }

    /// Closes every log cleanly, flushes the journal, stops and joins the threads, and lets go of the directory.
    ///
    /// # Errors
    /// The first failure of closing a log; everything is closed all the same.
    pub fn close(&self) -> Result<(), LogError> {
        let mut logs: Vec<_> = self.shared.open.lock().values().cloned().collect();
        // The order shows in the journal.
        logs.sort_unstable_by_key(|log| log.id);
        let mut first_error = Ok(());
        let mut keep_first = |result: Result<(), LogError>| {
            if first_error.is_ok() {
                first_error = result;
            }
        };
        // All marks go with one flush of the journal.
        let mut answers = Vec::new();
        for log in logs.iter().filter(|log| !log.is_closed()) {
            match log.start_close() {
                // Closed by somebody else meanwhile.
                Ok(None) | Err(LogError::Closed) => {}
                Ok(Some(mark)) => {
                    let (done, answer) = waiter();
                    let key = (log.id, Space::Engine, engine_key::CLEAN);
                    let now = self.shared.config.clock.monotonic();
                    match self.shared.journal.put(key, Some(mark.encode()), false, now, Some(done)) {
                        Ok(_) => answers.push(answer),
                        Err(error) => keep_first(Err(error)),
                    }
                }
                Err(error) => keep_first(Err(error)),
            }
        }
        self.shared.queue.wake();
        for answer in answers {
            keep_first(self.shared.wait_for(&answer));
        }
        for log in &logs {
            log.finish_close();
        }
        self.stop();
        first_error
    }

    fn stop(&self) {
        // Nobody may append any more: nobody would write it.
        for log in self.shared.open.lock().values() {
            log.state.lock().closed = true;
            log.changed.notify_all();
        }
        self.shared.sealer.stop();
        self.shared.queue.stop();
        if self.shared.is_driven() {
            self.shared.sealer.drain();
            self.shared.driver.stop();
        }
        let own = std::thread::current().id();
        for thread in self.threads.lock().drain(..) {
            // The last handle may be dropped by a `done`, on one of these threads.
            if thread.thread().id() != own {
                let _ = thread.join();
            }
        }
        self.lock.lock().take();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

fn open_error(path: &Path, action: &'static str, error: io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => LogError::ReadOnly { path: path.to_owned(), action },
        // `create_dir_all` over a file.
        io::ErrorKind::AlreadyExists => LogError::NotADirectory { path: path.to_owned() },
        _ => LogError::io(path, action, error),
    }
}

fn list_dir(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, LogError> {
    let list = disk.list(dir).map_err(|error| LogError::io(dir, "list the directory", error))?;
    Ok(list.into_iter().map(|entry| entry.name).collect())
}

fn remove_dir(disk: &dyn Disk, dir: &PathBuf) -> Result<(), LogError> {
    match disk.remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogError::io(dir, "remove the directory", error)),
        _ => Ok(()),
    }
}

/// Reads `FORMAT`: the node id, `None` if there is no such file.
fn read_format(disk: &dyn Disk, dir: &Path) -> Result<Option<Uuid>, LogError> {
    let path = dir.join("FORMAT");
    let io = |error| LogError::io(path.clone(), "read the format", error);
    let file = match disk.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let bytes = file.read_at(0, 4096).map_err(io)?;
    let text = String::from_utf8_lossy(&bytes);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::trim));
    let version: u32 = field("chronicle-data")
        .and_then(|version| version.parse().ok())
        .ok_or_else(|| LogError::damaged(&path, 0, None, "it has no line 'chronicle-data <version>'"))?;
    if version > FORMAT_VERSION {
        return Err(LogError::NewerFormat { path, found: version, supported: FORMAT_VERSION });
    }
    let node = field("node").and_then(|node| Uuid::try_parse(node).ok());
    node.map(Some).ok_or_else(|| LogError::damaged(&path, 0, None, "it has no line 'node <uuid>'"))
}

fn write_format(disk: &dyn Disk, dir: &Path, node_id: Uuid) -> Result<(), LogError> {
    let path = dir.join("FORMAT");
    let aside = dir.join("FORMAT.tmp");
    let io = |error| open_error(&path, "write the format", error);
    let text = format!("chronicle-data {FORMAT_VERSION}\nnode {node_id}\n");
    let file = disk.open(&aside, OpenMode::Truncate).map_err(io)?;
    write_all_at(&*file, 0, &mut [IoSlice::new(text.as_bytes())]).map_err(io)?;
    file.sync_data().map_err(io)?;
    disk.rename(&aside, &path).map_err(io)?;
    disk.sync_dir(dir).map_err(io)?;
    // The directory itself may be new.
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => disk.sync_dir(parent).map_err(io),
        None => Ok(()),
    }
}
