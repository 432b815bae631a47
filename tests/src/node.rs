//! One real node: a `chronicle` process on dedicated loopback ports, with its data in a folder.
//!
//! Invariants:
//! - A node's child process never outlives the [`Node`] value; the threads that collect its output end with it.
//! - [`Node::restart`] serves on the same ports and the same data.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::binary;
use crate::faults::FaultyMachine;

/// Name of the configuration file in its folder.
const CONFIG_FILE: &str = "chronicle.yaml";

/// Longest time that a node may take to serve or to stop. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How to start a node.
#[derive(Debug, Clone)]
pub struct Setup {
    data_dir: Option<PathBuf>,
    settings: Map<String, Value>,
    host: IpAddr,
    data_port: u16,
    ops_port: u16,
    namespace: Option<String>,
    machine: Option<Arc<FaultyMachine>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// A node with default settings, free ports and its own empty data folder.
    pub fn new() -> Self {
        Self {
            data_dir: None,
            settings: Map::new(),
            host: Ipv4Addr::LOCALHOST.into(),
            data_port: free_port(),
            ops_port: free_port(),
            namespace: None,
            machine: None,
        }
    }

    /// Runs on a machine whose disk and clock can fail.
    #[must_use]
    pub fn on(mut self, machine: Arc<FaultyMachine>) -> Self {
        self.machine = Some(machine);
        self
    }

    /// Listen on this address, inside this network namespace (see [`crate::netns`]).
    #[must_use]
    pub fn inside(mut self, namespace: &str, host: IpAddr) -> Self {
        self.namespace = Some(namespace.to_owned());
        self.host = host;
        self
    }

    /// Address at which gRPC and HTTP will be served.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host, self.data_port))
    }

    /// Store the data here, and keep it after the test.
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// Serve data on this port.
    #[must_use]
    pub fn data_port(mut self, port: u16) -> Self {
        self.data_port = port;
        self
    }

    /// Serve health and metrics on this port.
    #[must_use]
    pub fn ops_port(mut self, port: u16) -> Self {
        self.ops_port = port;
        self
    }

    /// Sets one field of the configuration by its dotted path, such as `limits.connections-max`.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let (section, rest) = path.split_once('.').expect("a path has a section and a field");
        let mut place = self.settings.entry(section).or_insert_with(|| json!({}));
        for name in rest.split('.') {
            // Indexing creates missing groups.
            place = &mut place[name];
        }
        *place = value.into();
        self
    }

    /// Starts the node and waits until it is ready.
    ///
    /// # Errors
    /// The process does not start, ends, or is not ready in time; the error carries its log.
    pub fn start(self) -> Result<Node> {
        let mut node = self.prepare()?;
        node.restart()?;
        Ok(node)
    }

    /// A node that does not run yet: start it with [`Node::launch`] or [`Node::restart`].
    ///
    /// # Errors
    /// The data folder cannot be created.
    pub fn prepare(self) -> Result<Node> {
        let (dir, temporary) = self.folder()?;
        Ok(Node { setup: self, dir, _temporary: temporary, child: None, earlier: String::new() })
    }

    /// Starts a node that must fail to start; returns how it ended and what it printed.
    ///
    /// # Errors
    /// The process does not start, or does not end.
    pub fn start_refused(self) -> Result<Output> {
        let (dir, _temporary) = self.folder()?;
        let scratch = tempfile::tempdir()?;
        output(self.command(&dir, scratch.path())?)
    }

    fn folder(&self) -> Result<(PathBuf, Option<TempDir>)> {
        if let Some(dir) = &self.data_dir {
            return Ok((dir.clone(), None));
        }
        let temporary = tempfile::tempdir().context("creating a data folder")?;
        Ok((temporary.path().join("data"), Some(temporary)))
    }

    /// `chronicle node --config FILE` with the settings as a file in `scratch` (JSON is YAML).
    fn command(&self, dir: &Path, scratch: &Path) -> Result<Command> {
        let mut tree = self.settings.clone();
        let section = tree.entry("node").or_insert_with(|| json!({}));
        section["data-dir"] = json!(dir);
        // Plaintext must be configured explicitly.
        let security = tree.entry("security").or_insert_with(|| json!({}));
        if security["tls"]["mode"].is_null() {
            security["tls"]["mode"] = json!("disabled");
        }
        let section = tree.entry("listeners").or_insert_with(|| json!({}));
        section["data"] = json!(SocketAddr::from((self.host, self.data_port)));
        section["ops"] = json!(SocketAddr::from((self.host, self.ops_port)));
        let file = scratch.join(CONFIG_FILE);
        std::fs::write(&file, serde_json::to_vec_pretty(&Value::Object(tree))?).context("writing the configuration")?;
        let mut command = program()?;
        command.arg("node").arg("--config").arg(file);
        if let Some(machine) = &self.machine {
            command = machine.wrap(&command, dir)?;
        }
        if let Some(name) = &self.namespace {
            command = crate::netns::enter(name, &command);
        }
        Ok(command)
    }
}

/// The `chronicle` program with a clean environment: variables of the caller must not configure it.
///
/// # Errors
/// The program cannot be built.
pub fn program() -> Result<Command> {
    let mut command = Command::new(binary::chronicle()?);
    command.env_clear().stdin(Stdio::null());
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    Ok(command)
}

/// Runs a command to its end and returns how it ended and what it printed.
///
/// # Errors
/// The process does not start, or does not end within [`PATIENCE`].
pub fn output(mut command: Command) -> Result<Output> {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    let pid = Pid::from_child(&child);
    let waiter = std::thread::spawn(move || child.wait_with_output());
    let deadline = Instant::now() + PATIENCE;
    while !waiter.is_finished() {
        if Instant::now() > deadline {
            // The process id is still valid: the process has not been waited for yet.
            let _ = kill_process(pid, Signal::KILL);
            let output = waiter.join().expect("waiting does not panic")?;
            bail!("{command:?} did not end: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(waiter.join().expect("waiting does not panic")?)
}

/// A running (or killed, or stopped) node.
#[derive(Debug)]
pub struct Node {
    setup: Setup,
    dir: PathBuf,
    _temporary: Option<TempDir>,
    child: Option<Running>,
    /// What the node printed in the starts before this one.
    earlier: String,
}

#[derive(Debug)]
struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    // Holds the configuration file.
    scratch: TempDir,
}

impl Node {
    /// Where gRPC and HTTP are served.
    pub fn address(&self) -> SocketAddr {
        self.setup.address()
    }

    /// Where health and metrics are served.
    pub fn ops_address(&self) -> SocketAddr {
        SocketAddr::from((self.setup.host, self.setup.ops_port))
    }

    /// Changes the setup from the next start on, with the same data.
    ///
    /// # Errors
    /// The node runs: its addresses are in use.
    pub fn replace_setup(&mut self, setup: Setup) -> Result<()> {
        ensure!(self.child.is_none(), "the node runs");
        self.setup = setup;
        Ok(())
    }

    /// Changes a setting as [`Setup::set`] does, from the next start on.
    pub fn set(&mut self, path: &str, value: impl Into<Value>) {
        self.setup = self.setup.clone().set(path, value);
    }

    /// The data folder.
    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// How this node was started; start another one like it.
    pub fn setup(&self) -> Setup {
        Setup { data_dir: Some(self.dir.clone()), ..self.setup.clone() }
    }

    /// The machine that it runs on.
    ///
    /// # Panics
    /// It was not set up with [`Setup::on`].
    pub fn machine(&self) -> &FaultyMachine {
        self.setup.machine.as_ref().expect("the node runs on a machine that can fail")
    }

    /// Whether the process was started and has ended by itself. It can be started again then.
    ///
    /// # Errors
    /// The state of the process cannot be read.
    pub fn has_ended(&mut self) -> Result<bool> {
        let Some(running) = &mut self.child else { return Ok(false) };
        Ok(running.child.try_wait()?.is_some())
    }

    /// Process id of the running node.
    ///
    /// # Panics
    /// The node is not running.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").child.id()
    }

    /// Whether the process was started and not ended by the harness. It may have ended by itself.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// What the node has printed since it was last started, both streams.
    pub fn log(&self) -> String {
        self.child.as_ref().map(Running::log).unwrap_or_default()
    }

    /// What the node has printed in all its starts.
    pub fn whole_log(&self) -> String {
        format!("{}{}", self.earlier, self.log())
    }

    /// Starts the process and does not wait for anything.
    ///
    /// # Errors
    /// The process does not start.
    pub fn launch(&mut self) -> Result<()> {
        self.kill();
        let scratch = tempfile::tempdir().context("creating a folder for the configuration")?;
        let mut child = self
            .setup
            .command(&self.dir, scratch.path())?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting chronicle")?;
        let log = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            collect(child.stdout.take().expect("standard output is a pipe"), log.clone()),
            collect(child.stderr.take().expect("standard error is a pipe"), log.clone()),
        ];
        self.child = Some(Running { child, log, readers, scratch });
        Ok(())
    }

    /// Waits until the launched node reports that it is ready.
    ///
    /// # Errors
    /// It does not run, ends, or is not ready in time; the error carries its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ops = self.ops_address();
        let running = self.child.as_mut().context("the node does not run")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = running.child.try_wait()? {
                bail!("the node ended with {status} before it was ready:\n{}", running.log());
            }
            if matches!(get(ops, "/readyz"), Ok((200, _))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the node was not ready after {PATIENCE:?}:\n{}", running.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the process at once (`kill -9`), without a clean shutdown.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.child.take() {
            // Both fail only when the process has ended already.
            let _ = running.child.kill();
            let _ = running.child.wait();
            running.join();
            self.earlier += &running.log();
        }
    }

    /// Pauses the process (SIGSTOP), like a machine that hangs.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Resumes a paused process (SIGCONT).
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let running = self.child.as_ref().context("the node does not run")?;
        kill_process(Pid::from_child(&running.child), signal).with_context(|| format!("sending {signal:?}"))
    }

    /// The configuration file of the running node. Changes to it are lost at the next start.
    ///
    /// # Panics
    /// The node is not running.
    pub fn config_file(&self) -> PathBuf {
        self.child.as_ref().expect("the node runs").scratch.path().join(CONFIG_FILE)
    }

    /// Changes a setting in the file of the running node, and from the next start on. The file is replaced as a whole.
    ///
    /// # Errors
    /// It does not run, or its file cannot be written.
    pub fn reconfigure(&mut self, path: &str, value: impl Into<Value>) -> Result<()> {
        self.set(path, value);
        let scratch = tempfile::tempdir()?;
        self.setup.command(&self.dir, scratch.path())?;
        let file = self.config_file();
        // Written to the same folder first: a rename does not cross file systems, and the node never sees a partial
        // file.
        let new = file.with_extension("new");
        std::fs::copy(scratch.path().join(CONFIG_FILE), &new)?;
        std::fs::rename(new, file).context("replacing the configuration")
    }

    /// Asks the node to reload its configuration file (SIGHUP).
    ///
    /// # Errors
    /// It does not run.
    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Waits until the process has ended by itself; returns how, and what it had printed.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn wait_ended(&mut self) -> Result<(ExitStatus, String)> {
        self.ended_within(PATIENCE, "did not end by itself")
    }

    /// Deletes everything in the data folder, as a new disk would.
    ///
    /// # Errors
    /// The node runs, or its files cannot be deleted.
    pub fn wipe(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the node runs: stop it before deleting its data");
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("deleting the data"),
            _ => Ok(()),
        }
    }

    /// Asks the process to stop (SIGTERM) and waits for it; returns how it ended and what it had printed.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn terminate(&mut self) -> Result<(ExitStatus, String)> {
        self.signal(Signal::TERM)?;
        self.ended_within(PATIENCE, "did not stop")
    }

    fn ended_within(&mut self, patience: Duration, otherwise: &str) -> Result<(ExitStatus, String)> {
        let running = self.child.as_mut().context("the node does not run")?;
        let deadline = Instant::now() + patience;
        let ended = loop {
            match running.child.try_wait()? {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        // Collects what is left of its output, and its process when it has not ended.
        let before = self.earlier.len();
        self.kill();
        let log = self.earlier[before..].to_owned();
        match ended {
            Some(status) => Ok((status, log)),
            None => bail!("the node {otherwise} within {patience:?}:\n{log}"),
        }
    }

    /// Starts a node that was killed or stopped again: same ports, same data.
    ///
    /// # Errors
    /// As [`Setup::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// `GET` of a path on the ops port: status and body.
    ///
    /// # Errors
    /// The connection fails.
    pub fn ops(&self, path: &str) -> Result<(u16, String)> {
        get(self.ops_address(), path)
    }

    /// A value of its metrics by the name and labels that its line begins with; `None`: there is no such line.
    ///
    /// # Errors
    /// The node does not answer, or the value is no number.
    pub fn metric(&self, line: &str) -> Result<Option<f64>> {
        let (_, text) = self.ops("/metrics")?;
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?)
    }

    /// Bytes of memory that its process has (`VmRSS`) or had at most (`VmHWM`), by the field of proc(5), `/proc/PID/status`.
    ///
    /// # Errors
    /// The process has ended.
    pub fn memory_bytes(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.with_context(|| format!("no {field}"))?.trim().trim_end_matches(" kB");
        Ok(kib.parse::<u64>()? * 1024)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the node on {} ---\n{}", self.address(), self.whole_log());
        }
        self.kill();
    }
}

impl Running {
    fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn join(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

fn collect(stream: impl Read + Send + 'static, log: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            log.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

/// A plain HTTP/1.1 `GET`: status and body. Blocking; only for the few requests of the harness itself.
///
/// # Errors
/// The connection fails or the answer is not HTTP.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status line")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default();
    Ok((status, body))
}

/// A closed loopback port that the kernel assigns to no outgoing connection (those start at 32768).
///
/// # Panics
/// No port in the range is free.
pub fn free_port() -> u16 {
    static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..10_000 {
        let port = rand::random_range(20_000..30_000);
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
    panic!("no free port between 20000 and 30000");
}
