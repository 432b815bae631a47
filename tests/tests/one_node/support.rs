//! What a node says of itself to whoever helps: log lines without contents, log filters that change, support bundles.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chronicle_proto::v1;
use chronicle_tests::api;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::node::{Node, Setup, output, program};
use serde_json::Value;

/// What a payload may look like in a log: as text, in base64, as Rust or JSON shows bytes.
fn forms(marker: &str) -> Vec<String> {
    let decimal = |separator: &str| marker.bytes().map(|b| b.to_string()).collect::<Vec<_>>().join(separator);
    let hex: String = marker.bytes().map(|b| format!("{b:02x}")).collect();
    // Base64 depends on where in the input the marker begins: its middle, at each of three places.
    let base64 = |skip: usize| STANDARD.encode(&marker.as_bytes()[skip..skip + 9]);
    vec![marker.to_owned(), base64(0), base64(1), base64(2), decimal(", "), decimal(","), hex]
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_of_records_are_in_no_log_line_at_any_level() -> Result<()> {
    let mut cluster = Cluster::of(3).set("log.filter", "trace").set("log.format", "json").start().await?;
    cluster.create_topic("private", 1, 3, None).await?;
    let leader = cluster.leader("private", 0).await?;
    let address = cluster.node(leader).address();
    let (key, value, header) = ("marker-of-a-key-4711", "marker-of-a-value-4711", "marker-of-a-header-4711");
    let record = v1::Record {
        key: Some(Bytes::from(key)),
        value: Some(Bytes::from(value)),
        headers: vec![v1::Header { key: "plain".into(), value: Some(Bytes::from(header)) }],
        ..v1::Record::default()
    };
    let request = v1::ProduceRequest {
        partition: api::partition("private"),
        records: vec![record],
        ..v1::ProduceRequest::default()
    };
    api::log(address).await?.produce(request).await?;
    let url = format!("http://{address}/v1/topics/private/partitions/0/records");
    let json = serde_json::json!({ "records": [{ "key": STANDARD.encode(key), "value": STANDARD.encode(value) }] });
    reqwest::Client::new().post(&url).json(&json).send().await?;
    reqwest::Client::new().get(format!("{url}?from=earliest")).send().await?;
    ensure!(!api::read_all(address, "private", 1 << 20).await?.is_empty(), "nothing was read");
    // Refused: an error must not quote it either.
    reqwest::Client::new().post(&url).body(format!("{{\"records\": [{value}")).send().await?;
    cluster.caught_up("private").await?;
    for number in 0..3 {
        // Recovery reads what was written.
        cluster.kill(number);
        cluster.restart(number)?;
    }
    for number in 0..3 {
        let log = cluster.node(number).whole_log();
        ensure!(log.contains("\"TRACE\""), "node {number} does not log at trace level");
        for marker in [key, value, header] {
            for form in forms(marker) {
                let found = log.lines().find(|line| line.contains(&form));
                ensure!(found.is_none(), "node {number} logs a payload as {form:?}: {}", found.unwrap_or_default());
            }
        }
    }
    cluster.finish()
}

fn chronicle(node: &Node, arguments: &[&str]) -> Result<Value> {
    let mut command = program()?;
    command.args(["--server", &node.address().to_string(), "--output", "json", "--timeout", "5s"]).args(arguments);
    let output = output(command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_can_be_changed_while_a_node_runs() -> Result<()> {
    let node = Setup::new().set("log.filter", "warn").start()?;
    let shown = chronicle(&node, &["debug", "log-level"])?;
    ensure!(shown[0]["filter"] == "warn" && shown[0]["configured"] == "warn", "{shown}");
    ensure!(!node.log().contains("DEBUG"), "more is logged than was asked for");
    let changed = chronicle(&node, &["debug", "log-level", "debug", "--node", "chronicle-0", "--for", "1h"])?;
    ensure!(changed[0]["filter"] == "debug" && changed[0]["remaining_ms"].as_u64() > Some(0), "{changed}");
    // Opens a partition, which is worth a line at this level.
    api::create_topic(node.address(), "other", 1, None).await?;
    let mut log = api::log(node.address()).await?;
    api::append(&mut log, "other", "record".into()).await?;
    ensure!(node.log().contains("DEBUG"), "the change had no effect:\n{}", node.log());
    let reset = chronicle(&node, &["debug", "log-level", "--reset"])?;
    ensure!(reset[0]["filter"] == "warn" && reset[0]["remaining_ms"].is_null(), "{reset}");
    let refused = chronicle(&node, &["debug", "log-level", "loud=loud"]).map(drop);
    ensure!(refused.is_err_and(|error| error.to_string().contains("filter")), "a filter that is none was taken");
    Ok(())
}

/// The files of a bundle, by path below its one folder.
fn unpack(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(path)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let (_, name) = name.split_once('/').context("everything is in one folder")?;
        let name = name.to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        files.insert(name, text);
    }
    Ok(files)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_has_the_response_of_every_live_node_and_notes_the_dead_one() -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    cluster.create_topic("orders", 2, 3, None).await?;
    let leader = cluster.leader("orders", 0).await?;
    let mut log = api::log(cluster.node(leader).address()).await?;
    let marker = "marker-of-a-value-0815";
    api::append(&mut log, "orders", marker.into()).await?;
    let dead = (leader + 1) % 3;
    cluster.kill(dead);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("bundle.tar.gz");
    let shown = chronicle(cluster.node(leader), &["debug", "bundle", "--file", path.to_str().context("UTF-8")?])?;
    ensure!(shown["nodes"] == 2 && shown["of"] == 3, "{shown}");
    let files = unpack(&path)?;
    for (file, wanted) in [
        ("members.txt", "node-0"),
        ("status.txt", "GetStatusResponse"),
        ("topics.txt", "orders"),
        ("problems.txt", &format!("node node-{dead}: ")),
    ] {
        ensure!(
            files.get(file).is_some_and(|text| text.contains(wanted)),
            "{file}: no {wanted:?}: {:?}",
            files.get(file)
        );
    }
    for number in 0..3 {
        let of = |file: &str| {
            let found = files.iter().find(|(path, _)| {
                path.starts_with(&format!("nodes/node-{number}-")) && path.ends_with(&format!("/{file}"))
            });
            found.map(|(_, text)| text.as_str()).unwrap_or_default()
        };
        if number == dead {
            ensure!(!of("error.txt").is_empty(), "the dead node has no error: {:?}", files.keys());
            continue;
        }
        for (file, wanted) in [
            ("config.yaml", "bootstrap-expect: 3"),
            ("node.json", "\"version\""),
            ("metrics.txt", "chronicle_build_info"),
            ("status.txt", "controller_leader"),
            ("raft.json", "\"orders\""),
            ("log.txt", "INFO"),
        ] {
            ensure!(of(file).contains(wanted), "node {number}: {file}: no {wanted:?} in {}", of(file));
        }
    }
    ensure!(!files.values().any(|text| text.contains(marker)), "a record is in the bundle");
    cluster.restart(dead)?;
    cluster.finish()
}
