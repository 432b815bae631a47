//! Damage on the disk of one replica: found, repaired from the others, never served, and seen by `chronicle cluster verify`.

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::{Following, Load, check_read};
use chronicle_tests::node::{PATIENCE, output};
use chronicle_tests::{api, replica};

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
