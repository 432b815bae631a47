//! The command line: the real program against a real `chronicle dev` on free ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// `chronicle` with an environment of its own.
fn chronicle() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronicle"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CHRONICLE_")) {
        command.env_remove(name);
    }
    command
}

/// A development node; killed when dropped.
struct Dev {
    child: Child,
    line: String,
    stdout: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl Dev {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = chronicle()
            .args(["dev", "--port", "0", "--ops-port", "0", "--data"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.starts_with("chronicle serves on 127.0.0.1:"), "{line}");
        Self { child, line, stdout, dir }
    }

    fn data(&self) -> &Path {
        self.dir.path()
    }

    fn address(&self) -> &str {
        self.line.split(' ').find(|word| word.starts_with("127.0.0.1:")).unwrap()
    }

    /// Runs a command against this node with this standard input.
    fn run_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = chronicle()
            .args(arguments)
            .args(["--server", self.address()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A command that fails early does not read it all.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Standard output of a command that succeeds.
    fn ok(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.run_with(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The last line on standard error of a command that fails.
    fn error(&self, arguments: &[&str], input: &[u8]) -> String {
        failure(&self.run_with(arguments, input), 1)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat(), b"")).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failure(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn lines_come_back_as_they_went_in() {
    let node = Dev::start();
    node.ok(&["produce"], b"a\n\n\xc3\xa9\r\nlast without line feed");
    assert_eq!(node.ok(&["consume"], b""), "a\n\n\u{e9}\r\nlast without line feed\n");
    assert_eq!(node.ok(&["consume", "--from", "1", "--max", "2"], b""), "\n\u{e9}\r\n");
    assert_eq!(node.ok(&["consume", "--from", "1", "--to", "2"], b""), "\n");
    assert_eq!(node.ok(&["consume", "--from", "latest"], b""), "");
    assert_eq!(node.ok(&["consume", "--from", "@0", "--max", "1"], b""), "a\n");
    assert_eq!(node.ok(&["consume", "--from", "2999-01-01T00:00:00Z"], b""), "");
}

#[test]
fn keys_headers_and_compressed_batches_come_back() {
    let node = Dev::start();
    for (offset, compression) in ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate() {
        let arguments =
            ["produce", "--key-separator", "=", "-H", "x=1", "--compression", compression, "--each", "-o", "json"];
        assert_eq!(node.ok(&arguments, b"k=v\n"), format!("{{\"offset\":{offset},\"line\":1}}\n"));
    }
    let lines = node.ok(&["consume", "--format", "json", "--encoding", "text"], b"");
    assert_eq!(lines.lines().count(), 5);
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&record["key"], &record["value"]), (&"k".into(), &"v".into()), "{line}");
        assert_eq!(record["headers"][0]["name"], "x", "{line}");
    }
    assert_eq!(node.ok(&["consume", "--format", "key-value", "--max", "1"], b""), "k\tv\n");
}

#[test]
fn files_are_records_with_their_paths_as_keys() {
    let node = Dev::start();
    let (a, b) = (node.data().join("a"), node.data().join("b"));
    std::fs::write(&a, b"two\nlines\n").unwrap();
    std::fs::write(&b, b"").unwrap();
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    let summary = node.ok(&["produce", "-o", "json", "--keyed", "--file", a, b], b"");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["records"], &summary["last_offset"]), (&2.into(), &1.into()), "{summary}");
    let keys = node.ok(&["consume", "--format", "key-value", "--separator", "|"], b"");
    assert_eq!(keys, format!("{a}|two\nlines\n\n{b}|\n"));
    assert_eq!(node.ok(&["consume", "--format", "raw", "--delimiter", "\\0"], b""), "two\nlines\n\0\0");
}

#[test]
fn topics_are_created_listed_described_changed_and_deleted() {
    let node = Dev::start();
    let topic = node.json(&["topic", "create", "orders", "--partitions", "2", "--retention", "7d"]);
    assert_eq!((&topic["partitions"], &topic["settings"]["retention_ms"]), (&2.into(), &604_800_000.into()), "{topic}");
    assert!(node.error(&["topic", "create", "orders"], b"").starts_with("error: TOPIC_EXISTS: "));
    node.ok(&["topic", "create", "orders", "--if-not-exists"], b"");
    let names: Vec<String> =
        node.json(&["topic", "list"]).as_array().unwrap().iter().map(|topic| topic["name"].to_string()).collect();
    assert_eq!(names, ["\"default\"", "\"orders\""]);
    node.ok(&["produce", "--topic", "orders", "--partition", "1"], b"x\n");
    node.ok(&["topic", "alter", "orders", "--partitions", "3", "--durability", "memory"], b"");
    let topic = node.json(&["topic", "describe", "orders"]);
    assert_eq!(topic["settings"]["durability"], "memory", "{topic}");
    let partitions = topic["partition_list"].as_array().unwrap();
    assert_eq!((partitions.len(), &partitions[1]["next"]), (3, &1.into()), "{topic}");
    assert!(node.ok(&["topic", "list"], b"").starts_with("NAME "));
    node.ok(&["topic", "delete", "orders"], b"");
    assert!(node.error(&["topic", "delete", "orders"], b"").starts_with("error: UNKNOWN_TOPIC: "));
    node.ok(&["topic", "delete", "orders", "--if-exists"], b"");
}

#[test]
fn a_group_stores_what_was_printed_and_is_listed_described_reset_and_deleted() {
    let node = Dev::start();
    node.ok(&["produce"], b"a\nb\nc\n");
    assert_eq!(node.ok(&["consume", "default", "--group", "g", "--max", "2"], b""), "a\nb\n");
    let line = node.ok(&["consume", "--group", "g", "--max", "1", "-o", "json"], b"");
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&record["partition"], &record["offset"]), (&0.into(), &2.into()), "{line}");
    assert_eq!(node.json(&["group", "list"])[0]["state"], "empty");
    let group = node.json(&["group", "describe", "g"]);
    let lag = &group["partitions"][0];
    assert_eq!((&lag["offset"], &lag["end"], &lag["lag_records"]), (&3.into(), &3.into(), &0.into()), "{group}");
    let planned = node.json(&["group", "reset", "g", "default", "--to", "1", "--dry-run"]);
    assert_eq!(planned[0]["offset"], 1, "{planned}");
    assert_eq!(node.json(&["group", "describe", "g"])["partitions"][0]["offset"], 3);
    node.ok(&["group", "reset", "g", "default", "--to", "1"], b"");
    assert_eq!(node.ok(&["consume", "--group", "g", "--max", "1"], b""), "b\n");
    let error = node.error(&["consume", "--group", "g", "--from", "7"], b"");
    assert!(error.contains("--from") && error.contains("group reset"), "{error}");
    assert!(node.error(&["consume", "nowhere", "--group", "g"], b"").starts_with("error: UNKNOWN_TOPIC: "));
    node.ok(&["group", "delete", "g"], b"");
    assert!(node.error(&["group", "describe", "g"], b"").starts_with("error: UNKNOWN_GROUP: "));
}

#[test]
fn refusals_name_the_reason_and_the_line() {
    let node = Dev::start();
    node.ok(&["produce", "--expect-next", "0"], b"a\nb\n");
    let error = node.error(&["produce", "--expect-next", "0"], b"c\n");
    assert!(error.starts_with("error: line 1: VERSION_CONFLICT: "), "{error}");
    let error = node.error(&["produce", "--topic", "nope"], b"c\n");
    assert!(error.contains("UNKNOWN_TOPIC: "), "{error}");
    let large = vec![b'x'; 2 << 20];
    let error = node.error(&["produce"], &[b"fits\n".as_slice(), &large].concat());
    assert!(error.contains("RECORD_TOO_LARGE: "), "{error}");
    let error = node.error(&["consume", "--from", "99"], b"");
    assert!(error.starts_with("error: OFFSET_OUT_OF_RANGE: "), "{error}");
    assert_eq!(node.ok(&["consume", "--max", "2"], b""), "a\nb\n");
}

#[test]
fn following_prints_what_comes_and_ends_cleanly_on_a_signal_or_a_closed_pipe() {
    let node = Dev::start();
    node.ok(&["produce"], b"before\n");
    let follow = || {
        let arguments = ["consume", "--follow", "--server", node.address()];
        chronicle().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut signalled, mut closed) = (follow(), follow());
    let mut line = String::new();
    let mut reader = BufReader::new(signalled.stdout.take().unwrap());
    let mut other = BufReader::new(closed.stdout.take().unwrap());
    reader.read_line(&mut line).unwrap();
    other.read_line(&mut line).unwrap();
    drop(other);
    node.ok(&["produce"], b"after\n");
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "before\nbefore\nafter\n");
    kill_process(Pid::from_child(&signalled), Signal::INT).unwrap();
    for child in [signalled, closed] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn segments_are_printed_and_damage_is_found() {
    let mut node = Dev::start();
    node.ok(&["produce", "--key-separator", "="], b"k=debugged value\nl=w\n");
    kill_process(Pid::from_child(&node.child), Signal::TERM).unwrap();
    assert!(node.child.wait().unwrap().success());
    let logs = std::fs::read_dir(node.data().join("data/logs")).unwrap().map(|log| log.unwrap().path());
    let files: Vec<_> = logs.flat_map(|log| std::fs::read_dir(log).unwrap().map(|file| file.unwrap().path())).collect();
    let holds = |path: &Path| std::fs::read(path).unwrap().windows(14).any(|bytes| bytes == b"debugged value");
    let segment = files.iter().find(|path| path.extension().is_some_and(|e| e == "log") && holds(path)).unwrap();
    let run =
        |arguments: &[&str]| chronicle().args(["debug", "segment"]).args(arguments).arg(segment).output().unwrap();

    let output = run(&["--records", "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    let documents: Vec<Value> = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let summary = &documents.last().unwrap()["summary"];
    assert_eq!((&summary["offsets"], &summary["problems"]), (&2.into(), &Value::Array(Vec::new())), "{summary}");
    let records: Vec<&Value> =
        documents.iter().filter_map(|document| document["entry"]["records"].as_array()).flatten().collect();
    assert_eq!(
        (&records[0]["key"], &records[1]["offset"], &records[1]["value"]),
        (&"aw==".into(), &1.into(), &"dw==".into())
    );
    let text = String::from_utf8(run(&[]).stdout).unwrap();
    // How many batches they came in is the producer's choice.
    assert!(text.contains(" 2 offsets, not sealed: intact"), "{text}");

    let mut bytes = std::fs::read(segment).unwrap();
    let at = bytes.windows(14).position(|bytes| bytes == b"debugged value").unwrap();
    bytes[at] ^= 1;
    std::fs::write(segment, bytes).unwrap();
    let output = run(&["--summary"]);
    assert_eq!(failure(&output, 1), "error: 1 of 1 segments have problems");
    assert!(String::from_utf8(output.stdout).unwrap().contains("problem: "));
}

#[test]
fn data_is_nobodys_but_the_owners_and_the_groups() {
    use std::os::unix::fs::PermissionsExt;
    let node = Dev::start();
    node.ok(&["produce"], b"private\n");
    let (mut folders, mut files) = (vec![node.data().join("data")], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let (entry, path) = entry.map(|entry| (entry.metadata().unwrap(), entry.path())).unwrap();
            let mode = entry.permissions().mode();
            assert_eq!(mode & 0o027, 0, "{}: {mode:o}", path.display());
            match entry.is_dir() {
                true => folders.push(path),
                false => files += 1,
            }
        }
    }
    assert!(files > 3, "{files} files");
}

#[test]
fn the_bench_reports_rates_and_latencies() {
    let node = Dev::start();
    for mode in ["unary", "stream"] {
        let report =
            node.json(&["bench", "produce", "--mode", mode, "--count", "50", "--batch", "7", "--producers", "3"]);
        assert_eq!((&report["records"], &report["errors"]), (&50.into(), &0.into()), "{report}");
        assert!(report["latency_us"]["p99"].as_u64().unwrap() > 0, "{report}");
    }
    let report = node.json(&["bench", "consume"]);
    assert_eq!((&report["records"], &report["bytes"]), (&100.into(), &102_400.into()), "{report}");
}

#[test]
fn dev_exits_0_on_sigterm_and_refuses_a_port_in_use() {
    let mut node = Dev::start();
    let data = node.data().join("data");
    let run = |data: &Path, port: &str| {
        chronicle().args(["dev", "--port", port, "--ops-port", "0", "--data"]).arg(data).output().unwrap()
    };
    let error = failure(&run(&data, "0"), 1);
    assert!(error.contains("in use by another process"), "{error}");
    let port = node.address().rsplit_once(':').unwrap().1.to_owned();
    let error = failure(&run(&node.data().join("other"), &port), 1);
    assert!(error.contains("listeners.data") && error.matches("Address already in use").count() == 1, "{error}");

    kill_process(Pid::from_child(&node.child), Signal::TERM).unwrap();
    assert!(node.child.wait().unwrap().success());
    let mut rest = String::new();
    node.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "dev prints one line");
}

#[test]
fn an_unreachable_node_is_one_line_after_the_timeout() {
    let arguments = ["topic", "list", "--server", "127.0.0.1:1", "--timeout", "100ms"];
    let error = failure(&chronicle().args(arguments).output().unwrap(), 1);
    assert!(error.starts_with("error: UNREACHABLE: ") && error.contains("refused"), "{error}");
}

#[test]
fn configuration_and_completions_are_printed_and_wrong_usage_is_2() {
    let sample = chronicle().args(["config", "--sample"]).output().unwrap();
    assert_eq!(String::from_utf8(sample.stdout).unwrap(), chronicle_node::config::SAMPLE);
    let config = chronicle().args(["config", "-o", "json", "--set", "log.filter=debug"]).output().unwrap();
    let config: Value = serde_json::from_slice(&config.stdout).unwrap();
    assert_eq!((&config["log"]["filter"], &config["limits"]["connections-max"]), (&"debug".into(), &4096.into()));
    let wrong = chronicle().arg("config").env("CHRONICLE_LOG__FILTR", "x").output().unwrap();
    assert!(failure(&wrong, 1).contains("environment variable CHRONICLE_LOG__FILTR"));
    for shell in ["bash", "zsh", "fish"] {
        let script = chronicle().args(["completions", shell]).output().unwrap();
        assert!(script.status.success() && !script.stdout.is_empty());
    }
    for wrong in [&["dev", "--nodes", "0"][..], &["produce", "--nope"], &[]] {
        assert_eq!(chronicle().args(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}
