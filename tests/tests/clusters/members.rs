//! Nodes that come and go while the cluster serves: grown, shrunk, drained, wiped, removed.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1;
use chronicle_tests::api;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::{Following, Load, check_read};
use chronicle_tests::node::{PATIENCE, output};
use serde_json::{Value, json};

const TOPIC: &str = "members";

/// Runs `chronicle cluster ...` at a node; answers whether it succeeded, and both its outputs.
fn chronicle(cluster: &Cluster, number: usize, arguments: &[&str]) -> Result<(bool, String, String)> {
    let mut command = cluster.program(number)?;
    command.arg("cluster").args(arguments);
    let output = tokio::task::block_in_place(|| output(command))?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// As [`chronicle`], for a command that must succeed and prints JSON.
fn json(cluster: &Cluster, number: usize, arguments: &[&str]) -> Result<Value> {
    let (success, out, err) = chronicle(cluster, number, &[arguments, &["--output", "json"]].concat())?;
    ensure!(success, "{arguments:?}: {err}{out}");
    serde_json::from_str(&out).with_context(|| format!("{arguments:?} printed {out}"))
}

/// Waits until every partition of the topic has so many replicas, all caught up.
async fn has_replicas(cluster: &Cluster, count: usize) -> Result<()> {
    cluster
        .eventually("the wanted number of replicas", async |cluster| {
            let replicas = cluster.replicas(TOPIC, 0).await?;
            ensure!(replicas.len() == count, "replicas on {replicas:?}");
            // What was moved away is deleted.
            let log = cluster.log_id(TOPIC, 0).await?.to_string();
            for number in cluster.running().into_iter().filter(|number| !replicas.contains(number)) {
                let folder = cluster.node(number).data_dir().join("logs").join(&log);
                ensure!(!folder.exists(), "node-{number} still has {}", folder.display());
            }
            Ok(())
        })
        .await?;
    cluster.keeps_up(TOPIC).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_grows_to_three_and_five_and_shrinks_to_three_under_load() -> Result<()> {
    let mut cluster = Cluster::of(1).start().await?;
    // As many replicas as the cluster's default says, once there are nodes for them.
    cluster.create_topic(TOPIC, 1, 0, None).await?;
    let servers = cluster.servers();
    let following = Following::start(&servers, TOPIC, 0)?;
    let writing = Load::new(TOPIC).start(&servers)?;
    writing.progress(200, PATIENCE).await?;
    for nodes in [2, 3, 4, 5] {
        cluster.add_node(|setup| setup)?;
        cluster.settled().await.with_context(|| format!("with {nodes} nodes"))?;
        writing.progress(100, PATIENCE).await?;
    }
    has_replicas(&cluster, 3).await?;
    // The founder goes first, and with it the only address that the writers were given.
    for number in [0, 1] {
        let name = format!("node-{number}");
        let ended = json(&cluster, 4, &["decommission", &name, "--yes"])?;
        ensure!(ended["state"] == "done" && ended["remaining"] == 0, "{ended}");
        cluster.kill(number);
        writing.progress(200, PATIENCE).await?;
    }
    has_replicas(&cluster, 3).await?;
    let members = json(&cluster, 2, &["members"])?;
    ensure!(members.as_array().is_some_and(|members| members.len() == 3), "{members}");
    let history = writing.stop().await?;
    println!("{} acknowledged, longest silence {:?}", history.acknowledged(), history.longest_silence());
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    let read = following.read_to(history.end(0)).await?;
    let stored = cluster.check_disks(TOPIC, &history).await?;
    check_read(&read, &stored[0])?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_refused_and_a_decommission_that_breaks_a_topic_too() -> Result<()> {
    let mut cluster = Cluster::of(4).start().await?;
    cluster.create_topic(TOPIC, 4, 3, None).await?;
    let ended = json(&cluster, 0, &["decommission", "node-3", "--yes"])?;
    ensure!(ended["state"] == "done", "{ended}");
    cluster.kill(3);
    cluster.node_mut(3).launch()?;
    let (status, log) = tokio::task::block_in_place(|| cluster.node_mut(3).wait_ended())?;
    ensure!(!status.success() && log.contains("removed"), "ended with {status}:\n{log}");
    cluster.settled().await?;

    let (success, _, err) = chronicle(&cluster, 0, &["decommission", "node-2", "--yes"])?;
    ensure!(!success && err.contains(TOPIC) && err.contains('3'), "{err}");
    let (success, _, err) = chronicle(&cluster, 0, &["decommission", "nobody", "--yes"])?;
    ensure!(!success && err.contains("nobody"), "{err}");

    // With an empty disk it is a new node.
    cluster.node_mut(3).wipe()?;
    cluster.restart(3)?;
    cluster.settled().await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_while_it_was_paused_logs_it_and_exits() -> Result<()> {
    let mut cluster = Cluster::of(4).start().await?;
    cluster.create_topic(TOPIC, 4, 3, None).await?;
    cluster.node(3).pause()?;
    let ended = json(&cluster, 0, &["decommission", "node-3", "--yes"])?;
    ensure!(ended["state"] == "done", "{ended}");
    // It wakes with everything as it was: for itself it is a member.
    cluster.node(3).resume()?;
    let (status, log) = tokio::task::block_in_place(|| cluster.node_mut(3).wait_ended())?;
    let reason = "the cluster refuses this node: the node was removed from it: node ";
    ensure!(!status.success() && log.contains(reason), "ended with {status}:\n{log}");
    cluster.node_mut(3).launch()?;
    let (status, log) = tokio::task::block_in_place(|| cluster.node_mut(3).wait_ended())?;
    ensure!(!status.success() && log.contains(reason), "a restart says something else, {status}:\n{log}");
    cluster.settled().await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_wiped_disk_joins_again_and_is_filled() -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 2, 3, None).await?;
    let load = Load { partitions: 2, ..Load::new(TOPIC) };
    let writing = load.start(&cluster.servers())?;
    writing.progress(500, PATIENCE).await?;
    cluster.kill(1);
    writing.progress(200, PATIENCE).await?;
    cluster.node_mut(1).wipe()?;
    cluster.restart(1)?;
    cluster.settled().await?;
    writing.progress(200, PATIENCE).await?;
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    has_replicas(&cluster, 3).await?;
    cluster.check_disks(TOPIC, &history).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_leads_nothing_until_it_is_undrained_and_leadership_moves_on_request() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 6, 3, None).await?;
    let writing = Load { partitions: 6, writers: 6, ..Load::new(TOPIC) }.start(&cluster.servers())?;
    writing.progress(200, PATIENCE).await?;

    let drained = json(&cluster, 1, &["drain", "node-0", "--yes"])?;
    ensure!(drained["state"] == "done", "{drained}");
    for partition in 0..6 {
        let leader = cluster.leader(TOPIC, partition).await?;
        ensure!(leader != 0, "node-0 still leads partition {partition}");
    }
    let members = json(&cluster, 2, &["members"])?;
    ensure!(members[0]["state"] == "draining" && members[0]["role"] != "leader", "{members}");
    writing.progress(200, PATIENCE).await?;
    json(&cluster, 1, &["undrain", "node-0"])?;

    for to in ["node-0", "node-1", "node-2"] {
        let moved = json(&cluster, 2, &["transfer", TOPIC, "--partition", "3", "--to", to])?;
        ensure!(moved["leader"] == to, "{moved}");
        let controller = json(&cluster, 2, &["transfer", "--to", to])?;
        ensure!(controller["leader"] == to, "{controller}");
        writing.progress(100, PATIENCE).await?;
    }
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    ensure!(history.longest_silence() < Duration::from_secs(5), "silent for {:?}", history.longest_silence());
    cluster.finish()
}

/// What a listener for another protocol gives its clients, at whichever node they ask.
#[tokio::test(flavor = "multi_thread")]
async fn every_node_returns_the_address_of_every_listener_which_belongs_to_one_node() -> Result<()> {
    const FIELD: &str = "node.advertised-addresses.kafka";
    let mut cluster = Cluster::of(1).start().await?;
    cluster.add_node(|setup| setup.set(FIELD, "node-1.example.com:9092"))?;
    advertises(&cluster, 1, Some("node-1.example.com:9092")).await?;
    advertises(&cluster, 0, None).await?;
    let members = json(&cluster, 0, &["members"])?;
    let data = cluster.node(1).address().to_string();
    ensure!(members[1]["addresses"] == json!({"data": data, "kafka": "node-1.example.com:9092"}), "{members}");

    let same = cluster.add_node(|setup| setup.set(FIELD, "node-1.example.com:9092")).expect_err("an address twice");
    let wanted = "addresses.kafka: node-1.example.com:9092: must be unique: node 2 (";
    ensure!(format!("{same:#}").contains(wanted), "{same:#}");

    // The last start counts, also for a node that founded the cluster.
    for (number, address) in [(1, "moved.example.com:9094"), (0, "node-0.example.com:9092")] {
        cluster.terminate(number)?;
        cluster.node_mut(number).set(FIELD, address);
        cluster.restart(number)?;
        advertises(&cluster, number, Some(address)).await?;
    }
    advertises(&cluster, 1, Some("moved.example.com:9094")).await?;
    cluster.finish()
}

/// Waits until every node returns these addresses for one of them: that of its data port, and this one of a Kafka listener.
async fn advertises(cluster: &Cluster, number: usize, kafka: Option<&str>) -> Result<()> {
    let data = cluster.node(number).address().to_string();
    let kafka = kafka.map(|address| ("kafka".to_owned(), address.to_owned()));
    let wanted: HashMap<_, _> = [("data".to_owned(), data.clone())].into_iter().chain(kafka).collect();
    let what = format!("the addresses of node-{number} at every node");
    cluster
        .eventually(&what, async |cluster| {
            for asked in 0..cluster.len() {
                let mut client = api::cluster(cluster.node(asked).address()).await?;
                let servers = client.get_servers(v1::GetServersRequest {}).await?.into_inner().servers;
                let server = servers.iter().find(|server| server.address == data).context("not listed yet")?;
                ensure!(server.addresses == wanted, "node-{asked}: {:?}", server.addresses);
            }
            Ok(())
        })
        .await
}

/// The scenario of proglog's agent test: three nodes, produce at one, consume at the others, nothing beyond the last offset.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_produced_at_one_node_is_read_once_at_every_node() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    let leader = cluster.leader(TOPIC, 0).await?;
    let mut log = api::log(cluster.node(leader).address()).await?;
    ensure!(api::append(&mut log, TOPIC, "foo".into()).await? == 0, "the first record is not at offset 0");
    for number in 0..3 {
        let address = cluster.node(number).address();
        let consume = |offset: i64, wait: u32| v1::ConsumeRequest {
            partition: api::partition(TOPIC),
            from: Some(v1::Position { at: Some(v1::position::At::Offset(offset)) }),
            max_wait_ms: wait,
            ..Default::default()
        };
        let mut log = api::log(address).await?;
        // A follower may hear a moment later that the record is committed.
        let first = cluster
            .eventually("the record at every node", async |_| {
                let answer = log.clone().consume(consume(0, 1000)).await?.into_inner();
                ensure!(!answer.records.is_empty(), "no record yet");
                Ok(answer.records)
            })
            .await?;
        ensure!(first.len() == 1 && first[0].value.as_deref() == Some(b"foo"), "node-{number}: {first:?}");
        let beyond = log.consume(consume(1, 0)).await.expect_err("nothing is beyond the last offset");
        ensure!(api::reason(&beyond) == "OFFSET_OUT_OF_RANGE", "node-{number}: {beyond:?}");
    }
    cluster.finish()
}
