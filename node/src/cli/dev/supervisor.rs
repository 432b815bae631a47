//! Keeps the nodes of `chronicle dev --nodes N` running, as child processes.
//!
//! Invariants:
//! - No child outlives this process: the kernel kills each child when this process ends (`chronicle node
//!   --die-with-parent`). For the kernel, the parent is the thread that started the child. So the one future that the
//!   main thread runs starts all children, never a task on a worker.
//! - [`run`] waits for every child that was started before it returns.
//! - A child that ends by itself is restarted after a pause, unless the cluster reports that its node was removed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use chronicle_client::v1;
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificates::Certificates;
use super::plan::DevNode;
use crate::cli::cluster::calls::ClusterCalls;
use crate::cli::output::{Format, Table, print};
use crate::cli::{run_node, signal};

/// Pause before a node that ended is restarted; doubles up to [`PAUSE_MAX`] while the node ends before it serves.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Time that a node may take to stop beyond its own `limits.shutdown-grace-ms` before it is killed.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// Timeout of the status call that shows which nodes were removed.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// State shared by the supervisors of all nodes. They are parts of one future, so nothing here is locked.
struct SupervisorState<'a> {
    members: &'a [DevNode],
    /// `None`: plaintext.
    certificates: Option<Certificates>,
    program: PathBuf,
    /// Stops the nodes gracefully.
    stop: CancellationToken,
    /// Kills the nodes.
    kill: CancellationToken,
    /// Names of the nodes that serve or have served.
    served: watch::Sender<BTreeSet<&'a str>>,
    /// Names of the nodes that the cluster has removed.
    removed: RefCell<BTreeSet<&'a str>>,
}

/// Runs the nodes until SIGINT or SIGTERM, then stops them gracefully; a second signal kills them.
///
/// # Errors
/// Another process runs nodes on this folder, a port is in use, or a process cannot be started. No child is left
/// running then.
pub(super) async fn run(data: &Path, members: Vec<DevNode>, certificates: Option<Certificates>) -> anyhow::Result<()> {
    std::fs::create_dir_all(data).with_context(|| format!("creating {}", data.display()))?;
    let _lock = lock(data)?;
    members.iter().try_for_each(ports_are_free)?;
    for member in &members {
        let folder = &member.config.node.data_dir;
        // Created before the node starts: the folders define which nodes the cluster has, even when the start fails.
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let text = format!("# Written by `chronicle dev` at every start.\n{}", serde_yaml::to_string(&member.config)?);
        std::fs::write(&member.config_file, text)
            .with_context(|| format!("writing {}", member.config_file.display()))?;
    }

    let shared = SupervisorState {
        members: &members,
        certificates,
        program: std::env::current_exe().context("path of this program")?,
        stop: CancellationToken::new(),
        kill: CancellationToken::new(),
        served: watch::Sender::new(BTreeSet::new()),
        removed: RefCell::default(),
    };
    let all = async {
        let results = futures::future::join_all(members.iter().map(|member| supervise(&shared, member))).await;
        results.into_iter().collect::<anyhow::Result<()>>()
    };
    let mut all = std::pin::pin!(all);
    // `all` ends only when every child has ended; the other branches may be dropped at any point.
    tokio::select! {
        result = &mut all => result,
        () = announce(&shared) => unreachable!("announcing does not end"),
        Err(error) = signals(&shared) => {
            shared.stop.cancel();
            all.await.and(Err(error))
        }
    }
}

/// Locks the folder: at most one process runs its nodes.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("dev.lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("--data {}: another `chronicle dev` runs the nodes of this folder", data.display())
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// Checks the ports before any node is started, so that no partial cluster comes up.
fn ports_are_free(member: &DevNode) -> anyhow::Result<()> {
    let listeners = &member.config.listeners;
    for (option, address) in [("--port", listeners.data), ("--ops-port", listeners.ops)] {
        TcpListener::bind(address)
            .map_err(|error| anyhow!("{}: {address}: {error}; choose other ports with {option}", member.name))?;
    }
    Ok(())
}

/// Stops the nodes gracefully at the first signal and kills them at the second.
async fn signals(shared: &SupervisorState<'_>) -> anyhow::Result<()> {
    signal::stop_requested().await?;
    say(format_args!("stopping {} nodes; press Ctrl-C again to kill them", shared.members.len()));
    let again = async {
        signal::stop_requested().await?;
        shared.kill.cancel();
        shared.stop.cancel();
        anyhow::Ok(())
    };
    let in_order = async {
        // The other nodes must still be running to answer.
        for member in shared.members {
            note_if_removed(shared, member).await;
        }
        shared.stop.cancel();
        std::future::pending().await
    };
    tokio::select! {
        biased;
        result = again => result?,
        () = in_order => {}
    }
    std::future::pending().await
}

/// Prints the endpoints once every node has served. Does not end.
async fn announce(shared: &SupervisorState<'_>) {
    let expected = shared.members.len();
    let mut served = shared.served.subscribe();
    if served.wait_for(|served| served.len() == expected).await.is_ok() {
        // The parent process may have closed standard output.
        let _ = print_endpoints(shared.members, shared.certificates.as_ref());
    }
    std::future::pending().await
}

fn print_endpoints(members: &[DevNode], certificates: Option<&Certificates>) -> anyhow::Result<()> {
    let mut table = Table::new(&["NODE", "GRPC, HTTP", "OPS", "DATA"]);
    for DevNode { name, config, .. } in members {
        let (data, ops) = (config.listeners.data.to_string(), config.listeners.ops.to_string());
        table.row(vec![name.clone(), data, ops, config.node.data_dir.display().to_string()]);
    }
    print(Format::Table, &(), || table)?;
    let first = members[0].config.listeners.data;
    let mut server = if first.port() == 7400 { String::new() } else { format!(" --server {first}") };
    server += &certificates.map(Certificates::options).unwrap_or_default();
    let mut out = io::stdout().lock();
    writeln!(out, "\nTry it:")?;
    writeln!(out, "  chronicle cluster status{server}")?;
    writeln!(out, "  echo hello | chronicle produce --topic default{server}")?;
    writeln!(out, "  chronicle consume --topic default --from earliest{server}")?;
    writeln!(out, "Ctrl-C stops all nodes; a node that ends is started again.")?;
    Ok(out.flush()?)
}

/// Runs one node and restarts it whenever it ends, until the stop.
async fn supervise<'a>(shared: &SupervisorState<'a>, member: &'a DevNode) -> anyhow::Result<()> {
    let mut pause = PAUSE;
    loop {
        let child = match start(shared, member) {
            Ok(child) => child,
            Err(error) => {
                // Stop the others, too: do not leave a partial cluster running.
                shared.stop.cancel();
                return Err(error);
            }
        };
        let ended = attend(shared, member, child).await?;
        if !shared.stop.is_cancelled() {
            note_if_removed(shared, member).await;
        }
        if shared.removed.borrow().contains(member.name.as_str()) {
            return put_aside(member);
        }
        if shared.stop.is_cancelled() {
            return Ok(());
        }
        if ended.served {
            pause = PAUSE;
        }
        say(format_args!("{} ended ({}) and is started again in {} s", member.name, ended.status, pause.as_secs()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.stop.cancelled() => return Ok(()),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn start(shared: &SupervisorState<'_>, member: &DevNode) -> anyhow::Result<Child> {
    let mut command = Command::new(&shared.program);
    command.arg("node").arg("--config").arg(&member.config_file);
    command.arg("--die-with-parent").arg(getpid().to_string());
    // The environment's settings are in the configuration file already and must not override it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"CHRONICLE_")) {
        command.env_remove(name);
    }
    // The node writes to a pipe and cannot detect whether a terminal shows the output.
    if !io::stderr().is_terminal() {
        command.env("NO_COLOR", "1");
    }
    // Its own process group: Ctrl-C in the terminal reaches only this process, which stops the nodes.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("starting {}: {}", member.name, shared.program.display()))
}

/// How a child ended.
struct ChildExit {
    status: ExitStatus,
    /// It served before it ended.
    served: bool,
}

/// Forwards a child's output until the child ends, and ends the child when the stop is requested.
async fn attend<'a>(shared: &SupervisorState<'a>, member: &'a DevNode, mut child: Child) -> anyhow::Result<ChildExit> {
    let mut served = false;
    let out = child.stdout.take().context("standard output is a pipe")?;
    let err = child.stderr.take().context("standard error is a pipe")?;
    let ready = |line: &str| {
        if run_node::is_announcement(line) {
            served = true;
            shared.served.send_modify(|names| {
                names.insert(&member.name);
            });
        } else {
            say(format_args!("{} | {line}", member.name));
        }
    };
    let other = |line: &str| say(format_args!("{} | {line}", member.name));
    let grace = Duration::from_millis(member.config.limits.shutdown_grace_ms) + STOP_MARGIN;
    let (status, (), ()) = tokio::join!(wait(shared, &mut child, grace), lines(out, ready), lines(err, other));
    Ok(ChildExit { status: status.with_context(|| format!("waiting for {}", member.name))?, served })
}

/// Waits for the end of a child. After the stop it sends SIGTERM, and SIGKILL after `grace`.
async fn wait(shared: &SupervisorState<'_>, child: &mut Child, grace: Duration) -> io::Result<ExitStatus> {
    // `Child::wait` may be dropped and called again.
    tokio::select! {
        status = child.wait() => return status,
        () = shared.stop.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // The child was not reaped yet, so the pid is still its own.
        kill_process(pid, Signal::TERM)?;
    }
    tokio::select! {
        status = child.wait() => return status,
        () = tokio::time::sleep(grace) => {}
        () = shared.kill.cancelled() => {}
    }
    child.start_kill()?;
    child.wait().await
}

/// Calls `line` with every line of a stream, without its line feed. Replaces bytes that are not UTF-8.
async fn lines(stream: impl AsyncRead + Unpin, mut line: impl FnMut(&str)) {
    let mut stream = BufReader::new(stream);
    let mut bytes = Vec::new();
    while matches!(stream.read_until(b'\n', &mut bytes).await, Ok(1..)) {
        line(String::from_utf8_lossy(&bytes).trim_end_matches('\n'));
        bytes.clear();
    }
}

/// Requests the status from the other nodes and records that this node was removed when one reports it. Removal is
/// final.
async fn note_if_removed<'a>(shared: &SupervisorState<'a>, member: &'a DevNode) {
    let Some(node_id) = member.node_id() else { return };
    let others = shared.members.iter().filter(|other| other.name != member.name);
    let encryption = shared.certificates.as_ref().map(Certificates::client).unwrap_or_default();
    let questions = others.map(|other| {
        let calls = ClusterCalls::new(&other.config.listeners.data.to_string(), ASK_TIMEOUT, &encryption);
        async move { calls.ok()?.status().await.ok() }
    });
    let answers: Vec<_> = futures::future::join_all(questions).await.into_iter().flatten().collect();
    if is_removed(&answers, &node_id) {
        shared.removed.borrow_mut().insert(&member.name);
    }
}

fn is_removed(answers: &[v1::GetStatusResponse], node_id: &str) -> bool {
    let mut servers = answers.iter().flat_map(|answer| &answer.servers);
    servers.any(|server| server.node_id == node_id && server.state() == v1::ServerState::Removed)
}

/// Renames the folder of a removed node, so that it is no longer a node of the cluster and its number is free.
fn put_aside(member: &DevNode) -> anyhow::Result<()> {
    let from = &member.config.node.data_dir;
    let mut to = from.with_extension("removed");
    for again in 2.. {
        if !to.exists() {
            break;
        }
        to = from.with_extension(format!("removed-{again}"));
    }
    std::fs::rename(from, &to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
    say(format_args!("{} was removed from the cluster; its data is in {}", member.name, to.display()));
    Ok(())
}

/// Prints one line on standard error, which may be closed.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_removed_when_one_node_reports_it_whatever_other_nodes_report() {
        use v1::ServerState::{Active, Removed};
        let answer = |state: v1::ServerState| {
            let server = v1::Server { node_id: "a".into(), state: state.into(), ..Default::default() };
            v1::GetStatusResponse { servers: vec![server], ..Default::default() }
        };
        assert!(!is_removed(&[], "a"), "no node answers");
        assert!(!is_removed(&[answer(Active)], "a"));
        assert!(is_removed(&[answer(Active), answer(Removed)], "a"));
        assert!(!is_removed(&[answer(Removed)], "b"), "another node");
    }

    #[tokio::test]
    async fn output_is_passed_on_line_by_line_whatever_its_bytes() {
        let mut seen = Vec::new();
        lines(&b"one\ntwo \xff\n\nlast"[..], |line| seen.push(line.to_owned())).await;
        assert_eq!(seen, ["one", "two \u{fffd}", "", "last"]);
    }

    #[test]
    fn a_folder_is_held_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("another `chronicle dev`"));
        drop(held);
        lock(dir.path()).unwrap();
    }
}
