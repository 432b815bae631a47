//! Damage on the disk of one replica: found, repaired from the others, never served, and seen by `chronicle cluster verify`. A
//! replica that cannot be opened at all: the others serve without it.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use chronicle_log::disk::RealDisk;
use chronicle_log::{LogId, Store, StoreConfig};
use chronicle_proto::v1;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::{Following, Load, check_read};
use chronicle_tests::node::{PATIENCE, output};
use chronicle_tests::{api, replica, tls};

const TOPIC: &str = "repair";

fn verify(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.program(0)?;
    command.args(["cluster", "verify", TOPIC]);
    let output = tokio::task::block_in_place(|| output(command))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "verify: {err}{out}");
    ensure!(out.contains("same") && !out.contains("DIFFERENT"), "{out}");
    Ok(())
}

/// Damages one of so many replicas that hold several segments each, while its node is away, and sees it repaired.
async fn repaired(
    replicas: i32,
    of_the_leader: bool,
    damage: impl FnOnce(&[std::path::PathBuf]) -> Result<()>,
) -> Result<()> {
    // Scrubbing looks at every segment every second, so that nobody has to read the damage to find it.
    let mut cluster = Cluster::of(3).set("cluster.scrub-interval-ms", 1000).start().await?;
    let settings = v1::TopicSettings { segment_bytes: Some(64 << 10), ..Default::default() };
    cluster.create_topic(TOPIC, 1, replicas, Some(settings)).await?;
    let servers = cluster.servers();
    let writing = Load { value_bytes: 1000, ..Load::new(TOPIC) }.start(&servers)?;
    writing.progress(1000, PATIENCE).await?;

    let leader = cluster.leader(TOPIC, 0).await?;
    let holders = cluster.replicas(TOPIC, 0).await?;
    let follower = holders.into_iter().find(|number| *number != leader).context("a follower")?;
    let victim = if of_the_leader { leader } else { follower };
    let log = cluster.log_id(TOPIC, 0).await?;
    cluster.kill(victim);
    let segments = replica::segments(cluster.node(victim).data_dir(), log)?;
    ensure!(segments.len() >= 3, "{} segments", segments.len());
    damage(&segments)?;
    cluster.restart(victim)?;
    // Readers that go to every node, and one that asks the damaged one alone.
    let following = Following::start(&servers, TOPIC, 0)?;
    let address = cluster.node(victim).address();
    let direct = api::read_all(address, TOPIC, 1 << 20).await;
    writing.progress(300, PATIENCE).await?;
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    let read = following.read_to(history.end(0)).await?;
    cluster.caught_up(TOPIC).await?;
    cluster
        .eventually("replicas that verify finds the same", async |cluster| verify(cluster))
        .await
        .context("after the damage")?;
    let stored = cluster.check_disks(TOPIC, &history).await?;
    check_read(&read, &stored[0])?;
    // It may have refused to answer while it was damaged; what it did answer was right.
    for record in direct.unwrap_or_default() {
        let expected = &stored[0][usize::try_from(record.offset)?];
        ensure!(record.value == expected.value, "offset {} was served damaged", record.offset);
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_sealed_segment_of_a_follower_is_repaired_and_never_read() -> Result<()> {
    repaired(3, false, |segments| replica::flip_byte(&segments[0], std::fs::metadata(&segments[0])?.len() / 2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_sealed_segment_of_the_leader_is_repaired_and_never_read() -> Result<()> {
    repaired(3, true, |segments| replica::flip_byte(&segments[1], std::fs::metadata(&segments[1])?.len() / 2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_tail_of_one_replica_is_repaired() -> Result<()> {
    repaired(3, false, |segments| {
        // The newest segment may just have begun.
        let mut newest = segments.iter().rev();
        newest.find_map(|segment| replica::flip_in_last_record(segment).ok()).context("no data frame in any segment")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_missing_is_fetched_again() -> Result<()> {
    repaired(3, false, |segments| Ok(std::fs::remove_file(&segments[1])?)).await
}

/// Nobody can lead while one of two voters is out of service: the other one is asked for its log without that.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_follower_of_two_replicas_is_repaired() -> Result<()> {
    repaired(2, false, |segments| replica::flip_byte(&segments[0], std::fs::metadata(&segments[0])?.len() / 2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_leader_of_two_replicas_is_repaired() -> Result<()> {
    repaired(2, true, |segments| replica::flip_byte(&segments[1], std::fs::metadata(&segments[1])?.len() / 2)).await
}

/// The record at an offset, as this node returns it: over HTTP, or over gRPC, where the node may only answer or name another.
async fn record_at(cluster: &Cluster, number: usize, offset: i64, http: bool) -> Result<v1::StoredRecord> {
    let address = cluster.node(number).address();
    if !http {
        let request = v1::ConsumeRequest {
            partition: api::partition(TOPIC),
            from: Some(v1::Position { at: Some(v1::position::At::Offset(offset)) }),
            ..Default::default()
        };
        let answer =
            api::log(address).await?.consume(request).await.map_err(|s| anyhow::anyhow!("{}", api::reason(&s)));
        return answer?.into_inner().records.into_iter().next().context("a record");
    }
    let url = format!("{}/v1/topics/{TOPIC}/partitions/0/records?offset={offset}&max_bytes=1", tls::url(address));
    let answer = tls::http(address)?.get(url).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    let answer: serde_json::Value = answer.json().await?;
    let value = answer["records"][0]["value"].as_str().context("a value")?;
    let value = base64::engine::general_purpose::STANDARD.decode(value)?;
    Ok(v1::StoredRecord { offset, value: Some(value.into()), ..Default::default() })
}

/// Other replicas hold the record: nobody is told that it is damaged, not even the one who finds the damage.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_read_of_damage_on_the_leader_returns_the_record() -> Result<()> {
    // Nothing looks at the damage before the reader does, and nothing is answered from memory.
    let mut cluster = Cluster::of(3).set("storage.tail-cache-bytes", 0).start().await?;
    let settings = v1::TopicSettings { segment_bytes: Some(64 << 10), ..Default::default() };
    cluster.create_topic(TOPIC, 1, 3, Some(settings)).await?;
    let writing = Load { value_bytes: 1000, ..Load::new(TOPIC) }.start(&cluster.servers())?;
    writing.progress(600, PATIENCE).await?;
    let history = writing.stop().await?;
    let log = cluster.log_id(TOPIC, 0).await?;
    for (segment, http) in [(1, false), (2, true)] {
        cluster.caught_up(TOPIC).await?;
        let leader = cluster.leader(TOPIC, 0).await?;
        let path = replica::segments(cluster.node(leader).data_dir(), log)?.swap_remove(segment);
        let offset = replica::first_offset(&path)?;
        let whole = record_at(&cluster, leader, offset, http).await?;
        replica::flip_in_first_record(&path)?;
        let read = record_at(&cluster, leader, offset, http).await.context("the first read")?;
        ensure!(read.value == whole.value, "offset {offset} differs");
    }
    cluster.caught_up(TOPIC).await?;
    cluster.eventually("replicas that verify finds the same", async |cluster| verify(cluster)).await?;
    cluster.check_disks(TOPIC, &history).await?;
    cluster.finish()
}

fn checkpoint(segments: &[std::path::PathBuf]) -> std::path::PathBuf {
    segments[0].with_file_name("checkpoint")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_checkpoint_of_the_leader_is_repaired() -> Result<()> {
    repaired(3, true, |segments| {
        let path = checkpoint(segments);
        // A node that is killed may not have saved one yet.
        match std::fs::metadata(&path) {
            Ok(found) => replica::flip_byte(&path, found.len() / 2),
            Err(_) => Ok(std::fs::write(path, "no checkpoint")?),
        }
    })
    .await
}

/// Counts of the cluster as one node reports them: partitions without all, and without a majority of, their replicas.
async fn faulty(cluster: &Cluster, number: usize) -> Result<(u32, u32)> {
    let status = cluster.status(number).await?;
    Ok((status.under_replicated, status.offline))
}

/// A cluster of three with one topic, which holds some records, and the places of its replicas: the preferred leader first. All
/// nodes are stopped.
async fn stopped(settings: Option<v1::TopicSettings>, records: u64) -> Result<(Cluster, Vec<usize>, LogId)> {
    let mut cluster = Cluster::of(3).set("partitions.retention-check-ms", 50).start().await?;
    cluster.create_topic(TOPIC, 1, 3, settings).await?;
    let writing = Load { value_bytes: 1000, ..Load::new(TOPIC) }.start(&cluster.servers())?;
    writing.progress(records, PATIENCE).await?;
    writing.stop().await?;
    cluster.caught_up(TOPIC).await?;
    let (holders, log) = (cluster.replicas(TOPIC, 0).await?, cluster.log_id(TOPIC, 0).await?);
    for number in cluster.running() {
        cluster.terminate(number)?;
    }
    Ok((cluster, holders, log))
}

fn folder(cluster: &Cluster, number: usize, log: LogId) -> std::path::PathBuf {
    cluster.node(number).data_dir().join("logs").join(log.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_serve_while_the_first_replica_cannot_be_opened() -> Result<()> {
    let (mut cluster, holders, log) = stopped(None, 100).await?;
    let first = holders[0];
    let folder = folder(&cluster, first, log);
    let aside = folder.with_extension("aside");
    std::fs::rename(&folder, &aside)?;
    std::fs::write(&folder, "a file in the place of a folder")?;
    cluster.start_all()?;
    cluster.settled().await?;

    let writing = Load::new(TOPIC).start(&cluster.servers())?;
    writing.progress(100, PATIENCE).await?;
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    cluster
        .eventually("every node reports the replica that is not in service", async |cluster| {
            for number in cluster.running() {
                ensure!(
                    faulty(cluster, number).await? == (1, 0),
                    "node-{number}: {:?}",
                    faulty(cluster, number).await?
                );
                let leader = cluster.leader_as_known_to(number, TOPIC, 0).await?;
                ensure!(leader != first, "node-{number} sends clients to node-{first}, which has no usable replica");
            }
            Ok(())
        })
        .await?;
    ensure!(cluster.node(first).metric("chronicle_partitions_failed")? == Some(1.0), "the metric shows it");
    let described = cluster.describe(first, TOPIC).await?.partitions.remove(0).state;
    ensure!(described.starts_with("failed: "), "node-{first} describes it as {described}");

    // What kept it from opening is over, and the node runs on.
    std::fs::remove_file(&folder)?;
    std::fs::rename(&aside, &folder)?;
    cluster.caught_up(TOPIC).await?;
    cluster
        .eventually("every replica is in service", async |cluster| {
            for number in cluster.running() {
                ensure!(faulty(cluster, number).await? == (0, 0), "node-{number}");
            }
            Ok(())
        })
        .await?;
    verify(&cluster)?;
    cluster.finish()
}

/// The log begins behind its first entry: the state cannot be rebuilt, and comes from another replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_checkpoint_of_the_first_replica_comes_from_another_one() -> Result<()> {
    let settings =
        v1::TopicSettings { segment_bytes: Some(64 << 10), retention_bytes: Some(64 << 10), ..Default::default() };
    let (mut cluster, holders, log) = stopped(Some(settings), 2000).await?;
    let first = holders[0];
    let segments = replica::segments(cluster.node(first).data_dir(), log)?;
    ensure!(!segments[0].ends_with("00000000000000000000.log"), "retention has deleted nothing");
    std::fs::remove_file(checkpoint(&segments))?;
    cluster.start_all()?;
    cluster.settled().await?;
    let writing = Load::new(TOPIC).start(&cluster.servers())?;
    writing.progress(100, PATIENCE).await?;
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    cluster.caught_up(TOPIC).await?;
    cluster.eventually("replicas that verify finds the same", async |cluster| verify(cluster)).await?;
    cluster.finish()
}

/// With two of three replicas faulty there is no leader: an append is answered at once, as not accepted.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_without_a_leader_is_certainly_not_accepted() -> Result<()> {
    let (mut cluster, holders, log) = stopped(None, 10).await?;
    for number in &holders[..2] {
        let folder = folder(&cluster, *number, log);
        std::fs::rename(&folder, folder.with_extension("aside"))?;
        std::fs::write(&folder, "a file in the place of a folder")?;
    }
    cluster.start_all()?;
    cluster.settled().await?;
    cluster
        .eventually("every node answers an append as not accepted, without waiting for an election", async |cluster| {
            for number in cluster.running() {
                let mut client = api::log(cluster.node(number).address()).await?;
                let answer = api::append(&mut client, TOPIC, "x".into()).await;
                let status = answer.err().context("an append without a majority")?;
                let (reason, message) = (api::reason(&status), status.message());
                let certain = match reason.as_str() {
                    "NOT_LEADER" => number != holders[2],
                    "UNAVAILABLE" => message.contains("1 of 3 voters are in service"),
                    _ => false,
                };
                ensure!(certain, "node-{number}: {reason}: {message}");
            }
            Ok(())
        })
        .await?;
    cluster
        .eventually("every node reports the partition as offline", async |cluster| {
            for number in cluster.running() {
                ensure!(
                    faulty(cluster, number).await? == (1, 1),
                    "node-{number}: {:?}",
                    faulty(cluster, number).await?
                );
            }
            Ok(())
        })
        .await?;
    cluster.finish()
}

/// Damages the controller log of one node while it is away, and sees it repaired from the others.
async fn controller_repaired(of_the_leader: bool, damage: impl FnOnce(&std::path::Path) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    for name in ["a", "b", "c", "d"] {
        cluster.create_topic(name, 1, 3, None).await?;
    }
    let status = cluster.status(0).await?;
    let leads = |number: &usize| {
        let address = cluster.node(*number).address().to_string();
        status.servers.iter().any(|server| server.controller_leader && server.address == address)
    };
    let victim = (0..3).find(|number| leads(number) == of_the_leader).context("a node of this role")?;
    cluster.kill(victim);
    let log = LogId { topic: uuid::Uuid::nil(), partition: 0 };
    let segments = replica::segments(cluster.node(victim).data_dir(), log)?;
    damage(&segments[0])?;
    // The leader may be the node that was killed.
    cluster.eventually("a new topic", async |cluster| cluster.create_topic("meanwhile", 1, 3, None).await).await?;
    cluster.restart(victim)?;
    cluster.settled().await?;
    ensure!(folder(&cluster, victim, log).join("quarantine-1").exists(), "the damage is kept for analysis");
    // Its metadata is complete, and its vote counts: the other two have no majority without it.
    for name in ["a", "meanwhile"] {
        cluster.metadata(victim, name).await?;
    }
    let other = (0..3).find(|number| *number != victim).context("another node")?;
    cluster.kill(other);
    // The leader may be the node that was killed.
    cluster.eventually("a new topic", async |cluster| cluster.create_topic("after", 1, 3, None).await).await?;
    cluster.restart(other)?;
    cluster.settled().await?;
    cluster.finish()
}

/// Notes in the journal of a stopped node that a log must be filled, as a node does before it cuts damage out.
fn note_damage(data_dir: &std::path::Path, log: LogId) -> Result<()> {
    const KEY_FILL: u8 = 3;
    let store = Store::open(Arc::new(RealDisk), data_dir, StoreConfig::default())?;
    let (sent, done) = std::sync::mpsc::channel();
    store.journal_put(log, KEY_FILL, vec![2].into(), Some(Box::new(move |result| drop(sent.send(result)))))?;
    done.recv()??;
    Ok(store.close()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_ended_before_it_cut_anything_is_continued() -> Result<()> {
    repaired(3, false, |segments| {
        let folder = segments[0].parent().context("a folder")?;
        let name = folder.file_name().and_then(|name| name.to_str()).context("a name")?;
        let data_dir = folder.ancestors().nth(2).context("a data folder")?;
        note_damage(data_dir, name.parse()?)?;
        Ok(std::fs::remove_file(&segments[1])?)
    })
    .await?;
    controller_repaired(false, |segment| {
        let data_dir = segment.ancestors().nth(3).context("a data folder")?;
        note_damage(data_dir, LogId { topic: uuid::Uuid::nil(), partition: 0 })?;
        replica::flip_in_first_record(segment)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_controller_log_of_a_follower_is_repaired() -> Result<()> {
    controller_repaired(false, replica::flip_in_first_record).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_controller_log_of_the_leader_is_repaired() -> Result<()> {
    controller_repaired(true, replica::flip_in_first_record).await
}
