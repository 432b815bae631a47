//! The current configuration, and its reload while the node runs.
//!
//! [`Live`] holds the current configuration. Code reads a field from it whenever it needs the field and keeps no copy,
//! so that changes of the fields in `live-fields.txt` take effect at once; all other fields keep the values that the
//! node started with. [`Reload`] checks the file for changes: a complete and valid file is applied, any other file is
//! rejected as a whole and the error is logged and reported.
//!
//! `live-fields.txt` is a contract with the operator, which restarts nodes for changes of any other field.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Config, field_paths};

const LIVE_FIELDS: &str = include_str!("live-fields.txt");

/// Paths of the fields that take effect while the node runs, levels joined by dots.
pub fn live_fields() -> impl Iterator<Item = &'static str> {
    LIVE_FIELDS.lines()
}

/// State of the configuration file since the node started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileReport {
    /// BLAKE3 of the file that was applied last, hexadecimal; empty: no file is watched.
    pub digest: String,
    /// Fields whose value in that file takes effect only after a restart.
    pub restart_fields: Vec<String>,
    /// Why the current file is rejected; empty: it is applied.
    pub error: String,
    /// Number of changed files that were applied.
    pub taken: u64,
    /// Number of changed files that were rejected.
    pub refused: u64,
}

/// The current configuration. Cheap to clone; all clones share one state.
#[derive(Debug, Clone)]
pub struct Live {
    now: Arc<watch::Sender<Arc<Config>>>,
    report: Arc<Mutex<FileReport>>,
}

impl Live {
    /// Starts with this configuration, which must be validated.
    pub fn new(config: Arc<Config>) -> Self {
        Self { now: Arc::new(watch::Sender::new(config)), report: Arc::default() }
    }

    /// Returns the current configuration. Call it again rather than keep the result.
    pub fn now(&self) -> Arc<Config> {
        self.now.borrow().clone()
    }

    /// Returns a receiver of every change from now on.
    pub fn changes(&self) -> watch::Receiver<Arc<Config>> {
        self.now.subscribe()
    }

    /// Returns the state of the configuration file.
    pub fn report(&self) -> FileReport {
        self.report.lock().clone()
    }

    /// Applies a configuration as if it were in the file.
    #[cfg(test)]
    pub(crate) fn set(&self, config: Config) {
        self.now.send_replace(Arc::new(config));
    }

    /// Waits for the time in a field, in milliseconds, counted from the call; a change of the field applies to a wait
    /// in progress. 0: waits until the field changes.
    pub(crate) async fn pause(&self, field: impl Fn(&Config) -> u64) {
        let mut changes = self.changes();
        let began = Instant::now();
        loop {
            let wait = Duration::from_millis(field(&changes.borrow_and_update()));
            tokio::select! {
                () = tokio::time::sleep_until(began + wait), if !wait.is_zero() => return,
                changed = changes.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }

    /// Applies the live fields of a validated configuration. `started` is the configuration that the node started with.
    fn take(&self, started: &Config, wanted: &Config, digest: String) {
        let now = self.now();
        let merged = merge(&now, started, wanted);
        // Applied before the digest changes: a reader of the digest may rely on the fields.
        if !merged.changed.is_empty() {
            tracing::info!(fields = ?merged.changed, "configuration file changes applied");
            self.now.send_replace(Arc::new(merged.config));
        }
        let mut report = self.report.lock();
        if report.digest != digest {
            report.taken += u64::from(!report.digest.is_empty());
        }
        report.digest = digest;
        report.error = String::new();
        report.restart_fields = merged.waiting;
        if !report.restart_fields.is_empty() {
            tracing::warn!(fields = ?report.restart_fields, "configuration file changes need a restart");
        }
    }

    fn refuse(&self, error: String) {
        let mut report = self.report.lock();
        if report.error != error {
            report.refused += 1;
            tracing::error!(error, "configuration file rejected, previous settings stay in effect");
            report.error = error;
        }
    }
}

/// The result of [`merge`].
struct Merged {
    config: Config,
    /// Live fields that have changed.
    changed: Vec<String>,
    /// Fields that take effect only after a restart.
    waiting: Vec<String>,
}

/// Returns `now` with the live fields of `wanted`. When these are valid only together with a field that needs a
/// restart, all of them wait for the restart.
fn merge(now: &Config, started: &Config, wanted: &Config) -> Merged {
    let tree = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let (mut merged, started, wanted) = (tree(now), tree(started), tree(wanted));
    let (mut changed, mut waiting) = (Vec::new(), Vec::new());
    for path in field_paths() {
        let pointer = format!("/{}", path.replace('.', "/"));
        let Some(value) = wanted.pointer(&pointer) else { continue };
        if live_fields().any(|live| live == path) {
            if let Some(old) = merged.pointer_mut(&pointer).filter(|old| *old != value) {
                *old = value.clone();
                changed.push(path);
            }
        } else if started.pointer(&pointer) != Some(value) {
            waiting.push(path);
        }
    }
    match config(merged) {
        Some(config) => Merged { config, changed, waiting },
        None => {
            waiting.append(&mut changed);
            waiting.sort();
            Merged { config: now.clone(), changed, waiting }
        }
    }
}

fn config(tree: Value) -> Option<Config> {
    let config: Config = serde_json::from_value(tree).ok()?;
    config.validate().is_ok().then_some(config)
}

/// Makes a validated configuration of the file's text and all other sources, or returns the error as text.
pub type Loader = Box<dyn Fn(&str) -> Result<Config, String> + Send + Sync>;

/// Watches the configuration file.
pub struct Reload {
    /// The file.
    pub file: PathBuf,
    /// Loads a configuration from its text.
    pub load: Loader,
    /// Triggers a check at once.
    pub now: Arc<tokio::sync::Notify>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Reload {
    /// Checks the file every `node.config-reload-ms` and on every notification of `now`. `started` is the configuration
    /// that the node started with. Never returns; safe to cancel.
    pub(crate) async fn watch(self, started: Config, live: Live) {
        let mut known = None;
        loop {
            let file = self.file.clone();
            let read = crate::host::blocking(move || std::fs::read_to_string(file)).await;
            match read.map_err(|error| error.to_string()).and_then(|text| text.map_err(|error| error.to_string())) {
                Ok(text) if known.as_ref() == Some(&text) => {}
                Ok(text) => {
                    match (self.load)(&text) {
                        Ok(wanted) => {
                            live.take(&started, &wanted, blake3::hash(text.as_bytes()).to_hex().to_string());
                        }
                        Err(error) => live.refuse(error),
                    }
                    known = Some(text);
                }
                Err(error) => {
                    live.refuse(format!("{}: {error}", self.file.display()));
                    known = None;
                }
            }
            tokio::select! {
                () = live.pause(|config| config.node.config_reload_ms) => {}
                () = self.now.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config::default();
        change(&mut config);
        config
    }

    #[test]
    fn live_fields_are_fields_and_each_is_named_once_in_order() {
        let known = field_paths();
        let listed: Vec<&str> = live_fields().collect();
        assert!(listed.iter().all(|path| known.iter().any(|field| field == path)), "{listed:?}");
        assert!(listed.is_sorted_by(|a, b| a < b), "{listed:?}");
    }

    #[test]
    fn live_fields_are_applied_and_others_wait_for_a_restart() {
        let live = Live::new(Arc::new(changed(|config| config.listeners.data.set_port(4711))));
        let changes = live.changes();
        let wanted = changed(|config| {
            config.limits.connections_max = 7;
            config.log.filter = "debug".into();
            config.partitions.producers_max = 9;
            config.node.advertised_addresses.insert("kafka".parse().unwrap(), "k:9092".into());
        });
        live.take(&Config::default(), &wanted, "one".into());
        let now = live.now();
        assert_eq!((now.limits.connections_max, now.log.filter.as_str()), (7, "debug"));
        assert_eq!(now.partitions.producers_max, Config::default().partitions.producers_max);
        assert_eq!(now.listeners.data.port(), 4711, "what was found out at the start stays, and waits for nothing");
        assert!(now.node.advertised_addresses.is_empty());
        assert_eq!(live.report().restart_fields, ["node.advertised-addresses", "partitions.producers-max"]);
        assert!(changes.has_changed().unwrap());
        live.take(&Config::default(), &Config::default(), "two".into());
        assert_eq!(live.now().limits.connections_max, Config::default().limits.connections_max);
        let report = live.report();
        assert_eq!((report.restart_fields.len(), report.digest.as_str(), report.taken), (0, "two", 1));
    }

    #[test]
    fn live_fields_that_need_one_that_waits_wait_with_it() {
        let live = Live::new(Arc::new(Config::default()));
        let wanted = changed(|config| {
            config.limits.request_bytes_max = 4096;
            config.partitions.entry_bytes_max = 4096;
            config.limits.connection_bytes_max = (4 << 20) + 4096;
        });
        wanted.validate().unwrap();
        live.take(&Config::default(), &wanted, String::new());
        assert_eq!(*live.now(), Config::default());
        let waiting = ["limits.connection-bytes-max", "limits.request-bytes-max", "partitions.entry-bytes-max"];
        assert_eq!(live.report().restart_fields, waiting);
    }

    #[test]
    fn a_rejected_file_is_reported_until_one_is_applied_and_counted_once() {
        let live = Live::new(Arc::new(Config::default()));
        live.refuse("a: b: c".into());
        live.refuse("a: b: c".into());
        assert_eq!((live.report().error.as_str(), live.report().refused), ("a: b: c", 1));
        live.take(&Config::default(), &Config::default(), "one".into());
        assert_eq!(live.report().error, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_as_long_as_the_field_is_when_it_ends() {
        let live = Live::new(Arc::new(changed(|config| config.partitions.idle_ms = 3_600_000)));
        let began = Instant::now();
        let pausing = {
            let live = live.clone();
            tokio::spawn(async move { live.pause(|config| config.partitions.idle_ms).await })
        };
        tokio::time::sleep(Duration::from_secs(5)).await;
        live.set(changed(|config| config.partitions.idle_ms = 10_000));
        pausing.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }
}
