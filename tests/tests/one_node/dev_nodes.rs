//! `chronicle dev --nodes N`: real processes that live and die with the one that started them.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chronicle_tests::node::{PATIENCE, free_port, get, output, program};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// `chronicle dev` that runs, with its ports.
struct Dev {
    child: Child,
    port: u16,
    ops_port: u16,
    lines: mpsc::Receiver<String>,
}

/// First ports of two ranges of three that nobody uses.
fn free_ports() -> Result<(u16, u16)> {
    let free = |first: u16| (0..3).all(|number| TcpListener::bind(("127.0.0.1", first + number)).is_ok());
    for _ in 0..1000 {
        let (port, ops_port) = (free_port(), free_port());
        if port.abs_diff(ops_port) > 3 && free(port) && free(ops_port) {
            return Ok((port, ops_port));
        }
    }
    bail!("no three free ports in a row");
}

fn command(data: &Path, port: u16, ops_port: u16) -> Result<Command> {
    let mut command = program()?;
    command.arg("dev").arg("--data").arg(data);
    command.args(["--port", &port.to_string(), "--ops-port", &ops_port.to_string()]);
    Ok(command)
}

impl Dev {
    /// Starts it and waits until it has said where everything is.
    fn start(data: &Path, (port, ops_port): (u16, u16), arguments: &[&str]) -> Result<Self> {
        let mut command = command(data, port, ops_port)?;
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (told, lines) = mpsc::channel();
        let (out, err) = (child.stdout.take().context("a pipe")?, child.stderr.take().context("a pipe")?);
        let also_told = told.clone();
        // Both end with the process.
        std::thread::spawn(move || forward(out, &told));
        std::thread::spawn(move || forward(err, &also_told));
        let dev = Self { child, port, ops_port, lines };
        dev.says("Ctrl-C stops all nodes")?;
        Ok(dev)
    }

    /// Waits for a line that contains `words`.
    fn says(&self, words: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(words) {
                return Ok(line);
            }
            seen.push(line);
        }
        bail!("no line with `{words}` but:\n{}", seen.join("\n"));
    }

    /// Process ids of the nodes.
    fn nodes(&self) -> Result<Vec<Pid>> {
        let dev = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{dev}/task/{dev}/children"))?;
        children.split_whitespace().map(|id| Pid::from_raw(id.parse()?).context("a process id")).collect()
    }

    fn is_ready(&self, number: u16) -> bool {
        matches!(get(([127, 0, 0, 1], self.ops_port + number).into(), "/readyz"), Ok((200, _)))
    }

    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "SIGTERM ends dev with {status}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "dev does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(stream: impl std::io::Read, to: &mpsc::Sender<String>) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if to.send(line).is_err() {
            break;
        }
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn refused(output: &Output, words: &str) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "ended with {}: {stderr}", output.status);
    ensure!(stderr.contains(words), "no `{words}` in {stderr}");
    Ok(())
}

#[test]
fn three_nodes_serve_end_with_their_starter_even_by_kill_9_and_keep_their_data() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let ports = free_ports()?;
    let mut dev = Dev::start(&data, ports, &["--nodes", "3"])?;
    let nodes = dev.nodes()?;
    ensure!(nodes.len() == 3, "{} processes", nodes.len());
    ensure!((0..3).all(|number| dev.is_ready(number)), "a node is not ready");
    ensure!(data.join("node-2/FORMAT").exists(), "node-2 has no data");
    dev.child.kill()?;
    dev.child.wait()?;
    eventually("the nodes end with their starter", || nodes.iter().all(|node| test_kill_process(*node).is_err()))?;
    drop(dev);

    // The same nodes without being told how many.
    let identity = std::fs::read(data.join("node-1/FORMAT"))?;
    let dev = Dev::start(&data, ports, &[])?;
    ensure!(dev.nodes()?.len() == 3, "not all nodes are started again");
    ensure!(std::fs::read(data.join("node-1/FORMAT"))? == identity, "node-1 is another node");
    let (port, ops_port) = (free_port(), free_port());
    refused(&output(command(&data, port, ops_port)?)?, "another `chronicle dev`")?;
    dev.stop()?;
    let mut fewer = command(&data, port, ops_port)?;
    fewer.args(["--nodes", "2"]);
    refused(&output(fewer)?, "decommission")
}

#[test]
fn a_node_that_is_killed_is_reported_and_started_again_while_the_others_live_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = Dev::start(&dir.path().join("data"), free_ports()?, &["--nodes", "3"])?;
    let before = dev.nodes()?;
    kill_process(before[1], Signal::KILL)?;
    let line = dev.says("is started again")?;
    ensure!(line.starts_with("node-") && line.contains("SIGKILL"), "{line}");
    eventually("all three serve again", || (0..3).all(|number| dev.is_ready(number)))?;
    let after = dev.nodes()?;
    ensure!(after.len() == 3 && after.contains(&before[0]) && after.contains(&before[2]), "{before:?}, {after:?}");
    dev.stop()
}

#[test]
fn a_port_in_use_starts_no_node() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (port, ops_port) = free_ports()?;
    let _taken = TcpListener::bind(("127.0.0.1", port + 2))?;
    let mut dev = command(dir.path(), port, ops_port)?;
    dev.args(["--nodes", "3"]);
    refused(&output(dev)?, &format!("node-2: 127.0.0.1:{}", port + 2))?;
    ensure!(!dir.path().join("node-0/FORMAT").exists(), "node-0 was started");
    Ok(())
}

#[test]
fn what_is_produced_at_one_node_is_consumed_at_another() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = Dev::start(&dir.path().join("data"), free_ports()?, &["--nodes", "3"])?;
    let run = |number: u16, arguments: &[&str]| -> Result<String> {
        let mut command = program()?;
        command.args(arguments).args(["--server", &format!("127.0.0.1:{}", dev.port + number)]);
        let output = output(command)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} at node-{number}: {stderr}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let lines = dir.path().join("lines");
    std::fs::write(&lines, "one\ntwo\n")?;
    let lines = lines.to_str().context("a path that is text")?;
    run(0, &["produce", "--topic", "default", "--lines", lines])?;
    for number in 0..3 {
        let text = run(number, &["consume", "--topic", "default", "--from", "earliest", "--max", "2", "--follow"])?;
        ensure!(text == "one\ntwo\n", "node-{number}: {text}");
    }
    let members: serde_json::Value = serde_json::from_str(&run(2, &["cluster", "members", "--output", "json"])?)?;
    let names: Vec<_> = members.as_array().context("a list")?.iter().map(|member| &member["name"]).collect();
    ensure!(names == ["node-0", "node-1", "node-2"], "{members}");
    let status = run(1, &["cluster", "status"])?;
    ensure!(status.contains("node-2") && status.contains("Under-replicated:  0"), "{status}");
    dev.stop()
}
