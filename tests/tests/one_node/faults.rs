//! What can go wrong around a node, with real processes: each case has one clear answer and harms nothing accepted before.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use chronicle_proto::v1;
use chronicle_tests::node::{Node, PATIENCE, Setup, free_port, get, program};
use chronicle_tests::writer::{Options, Outcome, write_all};
use chronicle_tests::{api, input, mount};
use serde_json::Value;
use tokio::sync::watch;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{FileDescriptorResponse, ServerReflectionRequest};

const TOPIC: &str = "default";

/// A refused start is exit status 1 and one line on standard error that says all of `words` (in any case).
fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "ended with {}: {stderr}", output.status);
    let last = stderr.lines().last().unwrap_or_default();
    let lower = last.to_lowercase();
    for word in words {
        ensure!(lower.contains(&word.to_lowercase()), "the last line does not say `{word}`: {stderr}");
    }
    ensure!(!stderr.contains("panicked"), "the node panicked: {stderr}");
    Ok(())
}

fn append_some(node: &Node, count: usize) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut client = api::log(node.address()).await?;
        for number in 0..count {
            api::append(&mut client, TOPIC, format!("record {number}").into()).await?;
        }
        Ok(())
    })
}

/// The first `count` records are the ones that [`append_some`] appended.
fn still_there(node: &Node, count: usize) -> Result<()> {
    let records = tokio::runtime::Runtime::new()?.block_on(api::read_all(node.address(), TOPIC, 1 << 20))?;
    ensure!(records.len() >= count, "{} records left of {count}", records.len());
    for (number, record) in records.iter().take(count).enumerate() {
        let expected = format!("record {number}");
        ensure!(record.value.as_deref() == Some(expected.as_bytes()), "offset {number} is not `{expected}`");
    }
    Ok(())
}

#[test]
fn a_second_process_on_the_same_data_folder_is_refused_and_the_first_serves_on() -> Result<()> {
    let node = Setup::new().start()?;
    append_some(&node, 3)?;
    let second = node.setup().data_port(free_port()).ops_port(free_port()).start_refused()?;
    refused(&second, &[&node.data_dir().display().to_string(), "another process"])?;
    append_some(&node, 3)?;
    still_there(&node, 3)
}

#[test]
fn a_data_folder_of_a_newer_format_is_refused_and_left_as_it_is() -> Result<()> {
    let mut node = Setup::new().start()?;
    append_some(&node, 3)?;
    node.terminate()?;
    let file = node.data_dir().join("FORMAT");
    let text = fs::read_to_string(&file)?;
    let digits = text.find(|c: char| c.is_ascii_digit()).context("FORMAT names no version")?;
    let end = text[digits..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |length| digits + length);
    let newer = format!("{}9999{}", &text[..digits], &text[end..]);
    fs::write(&file, &newer)?;
    refused(&node.setup().start_refused()?, &["9999", "newer"])?;
    ensure!(fs::read_to_string(&file)? == newer, "FORMAT was changed");
    fs::write(&file, &text)?;
    node.restart()?;
    still_there(&node, 3)
}

#[test]
fn a_port_in_use_is_refused_by_name() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    refused(
        &Setup::new().data_port(port).start_refused()?,
        &["listeners.data", &format!("127.0.0.1:{port}"), "in use"],
    )?;
    refused(&Setup::new().ops_port(port).start_refused()?, &["listeners.ops", &format!("127.0.0.1:{port}"), "in use"])
}

#[test]
fn an_unknown_or_impossible_setting_is_refused_before_anything_is_opened() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let setup = || Setup::new().data_dir(&data);
    refused(&setup().set("limits.no-such-limit", 1).start_refused()?, &["no-such-limit"])?;
    refused(&setup().set("limits.connections-max", 0).start_refused()?, &["connections-max", "0"])?;
    ensure!(!data.exists(), "the data folder was created");
    Ok(())
}

#[test]
fn a_read_only_data_folder_is_refused_and_serves_again_when_writable() -> Result<()> {
    mount::with_mounts("faults::a_read_only_data_folder_is_refused_and_serves_again_when_writable", || {
        let volume = mount::Volume::new(256 << 20)?;
        let mut node = Setup::new().data_dir(volume.path().join("data")).start()?;
        append_some(&node, 3)?;
        node.terminate()?;
        volume.set_read_only(true)?;
        refused(&node.setup().start_refused()?, &["read-only"])?;
        volume.set_read_only(false)?;
        node.restart()?;
        still_there(&node, 3)
    })
}

/// What a refusal on a full disk may be. With a reserve the append is refused before it is tried. Without one the write
/// itself fails half-way, so that its outcome is open, and the cause says why.
fn says_full(reserve_bytes: u64, reason: &str, cause: &str) -> bool {
    reason == "DISK_FULL" || (reserve_bytes == 0 && reason == "OUTCOME_UNKNOWN" && cause == "DISK_FULL")
}

/// Fills the volume through the node, sees the same refusal on every interface, frees space and goes on.
fn run_full(reserve_bytes: u64) -> Result<()> {
    let volume = mount::Volume::new(64 << 20)?;
    let ballast = volume.ballast(32 << 20)?;
    let setup = Setup::new().data_dir(volume.path().join("data")).set("storage.reserve-bytes", reserve_bytes);
    let mut node = setup.start()?;
    let address = node.address();
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut client = api::log(address).await?;
        let mut accepted: Vec<(i64, Bytes)> = Vec::new();
        let value = |number: usize| Bytes::from([format!("{number:08}").into_bytes(), vec![b'x'; 200 << 10]].concat());
        let full = loop {
            let value = value(accepted.len());
            match api::append(&mut client, TOPIC, value.clone()).await {
                Ok(offset) => accepted.push((offset, value)),
                Err(status) => break status,
            }
            ensure!(accepted.len() < 1000, "200 MB fit on a volume of 64 MiB");
        };
        // The request that met the full disk itself was cut off half-way: its fate may be open. All after it are refused.
        ensure!(["DISK_FULL", "OUTCOME_UNKNOWN"].contains(&api::reason(&full).as_str()), "refused with {full:?}");
        ensure!(accepted.len() > 50, "full after {} records", accepted.len());

        // A large record again, over each interface. A partition that is being reopened may ask for patience first.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = match api::append(&mut client, TOPIC, value(0)).await {
                Ok(offset) => bail!("accepted at {offset} on a full disk"),
                Err(status) => status,
            };
            let code = status.code();
            if says_full(reserve_bytes, &api::reason(&status), &api::metadata(&status, "cause")) {
                let expected = [tonic::Code::ResourceExhausted, tonic::Code::Unknown];
                ensure!(expected[..if reserve_bytes == 0 { 2 } else { 1 }].contains(&code), "{status:?}");
                break;
            }
            ensure!(
                ["UNAVAILABLE", "DISK_FAILED", "OUTCOME_UNKNOWN"].contains(&api::reason(&status).as_str()),
                "{status:?}"
            );
            ensure!(Instant::now() < deadline, "still {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let http = reqwest::Client::new();
        let answer = http.post(format!("http://{address}/")).body(value(0)).send().await?;
        ensure!(answer.status().as_u16() == 507 || reserve_bytes == 0, "HTTP says {}", answer.status());
        let problem: Value = answer.json().await?;
        let text = |name: &str| problem[name].as_str().unwrap_or_default();
        ensure!(says_full(reserve_bytes, text("reason"), text("cause")), "HTTP says {problem}");
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), value(0))?;
        let server = address.to_string();
        let produce = program()?
            .args(["produce", "--server", &server, "--topic", TOPIC, "--file"])
            .arg(file.path())
            .args(["--timeout", "2s"])
            .output()?;
        let stderr = String::from_utf8_lossy(&produce.stderr);
        ensure!(
            produce.status.code() == Some(1)
                && (stderr.contains("DISK_FULL") || (reserve_bytes == 0 && stderr.contains("no space left"))),
            "the command line says {stderr}"
        );

        // Reads go on, and everything acknowledged is there.
        let check = async || -> Result<()> {
            let stored = api::read_all(address, TOPIC, 1 << 20).await?;
            for (offset, value) in &accepted {
                let record =
                    stored.get(usize::try_from(*offset)?).with_context(|| format!("offset {offset} is gone"))?;
                ensure!(record.value.as_ref() == Some(value), "offset {offset} changed");
            }
            Ok(())
        };
        check().await.context("while the disk is full")?;

        // With space the service returns by itself.
        fs::remove_file(&ballast)?;
        let deadline = Instant::now() + PATIENCE;
        let offset = loop {
            match api::append(&mut client, TOPIC, value(1)).await {
                Ok(offset) => break offset,
                Err(status) => ensure!(Instant::now() < deadline, "space is free, and still {status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        ensure!(offset >= i64::try_from(accepted.len())?, "offset {offset} was given twice");
        check().await.context("after space was freed")?;
        tokio::task::block_in_place(|| {
            node.kill();
            node.restart()
        })?;
        check().await.context("after a restart")
    })
}

#[test]
fn below_the_reserve_appends_are_refused_everywhere_and_return_with_space() -> Result<()> {
    mount::with_mounts("faults::below_the_reserve_appends_are_refused_everywhere_and_return_with_space", || {
        run_full(8 << 20)
    })
}

#[test]
fn a_disk_full_to_the_last_byte_loses_nothing_acknowledged_and_returns_with_space() -> Result<()> {
    mount::with_mounts("faults::a_disk_full_to_the_last_byte_loses_nothing_acknowledged_and_returns_with_space", || {
        run_full(0)
    })
}

#[test]
fn one_connection_too_many_is_refused_and_the_others_continue() -> Result<()> {
    let node = Setup::new().set("limits.connections-max", 4).start()?;
    let mut held: Vec<TcpStream> =
        (0..4).map(|_| TcpStream::connect(node.address())).collect::<std::io::Result<_>>()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The node counts a connection when it accepts it, which may be after `connect` returned here.
        let answer = get(node.address(), "/openapi.json");
        match answer {
            Ok((503, body)) if body.contains("TOO_MANY_CONNECTIONS") => break,
            Ok((200, _)) => ensure!(Instant::now() < deadline, "a fifth connection is served"),
            other => bail!("{other:?}"),
        }
    }
    ensure!(node.ops("/livez")?.0 == 200, "the ops port has limits of its own");
    use std::io::{Read, Write};
    let mut first = held.remove(0);
    first.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    first.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "a connection within the limit is not served");
    drop(held);
    drop(first);
    loop {
        match get(node.address(), "/openapi.json") {
            Ok((200, _)) => return Ok(()),
            other => ensure!(Instant::now() < deadline, "connections ended, and still {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_and_describes_them() -> Result<()> {
    let node = Setup::new().start()?;
    let mut client = ServerReflectionClient::new(api::connect(node.address()).await?);
    let ask = |message_request| ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
    let questions = vec![
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("chronicle.v1.Log".into())),
    ];
    let mut answers = client.server_reflection_info(tokio_stream::iter(questions)).await?.into_inner();
    let services = match answers.message().await?.and_then(|answer| answer.message_response) {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|s| s.name).collect::<Vec<_>>()
        }
        other => bail!("no list of services: {other:?}"),
    };
    for service in ["chronicle.v1.Log", "chronicle.v1.Admin", "chronicle.v1.Cluster", "grpc.health.v1.Health"] {
        ensure!(services.iter().any(|name| name == service), "{service} is not among {services:?}");
    }
    match answers.message().await?.and_then(|answer| answer.message_response) {
        Some(MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })) => {
            ensure!(!file_descriptor_proto.is_empty(), "no descriptor of chronicle.v1.Log");
        }
        other => bail!("no descriptor of chronicle.v1.Log: {other:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_cleanly_and_keeps_what_was_acknowledged() -> Result<()> {
    let items = input::lines()?;
    let mut node = Setup::new().start()?;
    let address = node.address();
    let (told, mut acknowledged) = watch::channel(0);
    let list = items.clone();
    let writer = tokio::spawn(async move { write_all(address, TOPIC, &list, Options::default(), &told).await });
    acknowledged.wait_for(|count| *count >= items.len() / 3).await.context("the writer ended early")?;
    let (status, log) = tokio::task::block_in_place(|| node.terminate())?;
    ensure!(status.success(), "SIGTERM ends the node with {status}:\n{log}");
    tokio::task::block_in_place(|| node.restart())?;
    let outcomes = writer.await??;
    let stored = api::read_all(address, TOPIC, 1 << 20).await?;
    ensure!(stored.len() == items.len(), "{} records stored of {}", stored.len(), items.len());
    for (index, (item, record)) in items.iter().zip(&stored).enumerate() {
        ensure!(outcomes[index] == Outcome::Acknowledged(record.offset), "offset {index}: {:?}", outcomes[index]);
        ensure!(record.value.as_ref() == Some(&item.value), "offset {index} holds another value");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_waiting_readers_within_the_grace() -> Result<()> {
    let mut node = Setup::new().set("limits.shutdown-grace-ms", 5000).start()?;
    let mut client = api::log(node.address()).await?;
    let request = v1::ConsumeStreamRequest {
        partition: api::partition(TOPIC),
        from: Some(v1::Position { at: Some(v1::position::At::Earliest(true)) }),
        ..Default::default()
    };
    api::append(&mut client, TOPIC, "first".into()).await?;
    let mut stream = client.consume_stream(request).await?.into_inner();
    ensure!(stream.message().await?.is_some_and(|first| first.records.len() == 1), "the first record does not arrive");
    let (status, log) = tokio::task::block_in_place(|| node.terminate())?;
    ensure!(status.success(), "SIGTERM ends the node with {status}:\n{log}");
    // The stream ends, in one way or the other, instead of hanging.
    let _ = stream.message().await;
    Ok(())
}

#[test]
fn dev_prints_one_line_with_its_address_and_has_the_default_topic() -> Result<()> {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir()?;
    let (data, ops) = (free_port(), free_port());
    let mut child = program()?
        .arg("dev")
        .arg("--data")
        .arg(dir.path().join("data"))
        .args(["--port", &data.to_string(), "--ops-port", &ops.to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let result = (|| -> Result<()> {
        let mut lines = BufReader::new(child.stdout.take().context("standard output is a pipe")?).lines();
        let line = lines.next().context("dev printed nothing")??;
        ensure!(line.contains(&data.to_string()) && line.contains(&ops.to_string()), "no ports in `{line}`");
        let (status, body) = get(([127, 0, 0, 1], data).into(), "/v1/topics")?;
        ensure!(status == 200 && body.contains("\"default\""), "{status}: {body}");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)?;
        let status = child.wait()?;
        ensure!(status.success(), "SIGTERM ends dev with {status}");
        ensure!(lines.next().is_none(), "dev prints one line");
        Ok(())
    })();
    let _ = child.kill();
    let _ = child.wait();
    result
}
