//! Damage to more than one replica, and to journals: what the nodes recover by themselves, and what a person does.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use chronicle_log::LogId;
use chronicle_proto::v1;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::{History, Load};
use chronicle_tests::node::{PATIENCE, output};
use chronicle_tests::{api, replica};

const TOPIC: &str = "sources";
const CONTROLLER: LogId = LogId { topic: uuid::Uuid::nil(), partition: 0 };

/// A cluster of three with one topic in several segments, and what was acknowledged. All nodes are stopped, the last one last, so that
/// its logs are the longest.
async fn stopped() -> Result<(Cluster, LogId, History)> {
    // Scrubbing opens every log, so that nobody has to use it to find the damage.
    let mut cluster = Cluster::of(3).set("cluster.scrub-interval-ms", 1000).start().await?;
    let settings = v1::TopicSettings { segment_bytes: Some(64 << 10), ..Default::default() };
    cluster.create_topic(TOPIC, 1, 3, Some(settings)).await?;
    let writing = Load { value_bytes: 1000, ..Load::new(TOPIC) }.start(&cluster.servers())?;
    writing.progress(600, PATIENCE).await?;
    let history = writing.stop().await?;
    cluster.caught_up(TOPIC).await?;
    let log = cluster.log_id(TOPIC, 0).await?;
    for number in cluster.running() {
        cluster.terminate(number)?;
    }
    Ok((cluster, log, history))
}

fn segments(cluster: &Cluster, number: usize, log: LogId) -> Result<Vec<PathBuf>> {
    let segments = replica::segments(cluster.node(number).data_dir(), log)?;
    ensure!(!segments.is_empty(), "node-{number} has no segments");
    Ok(segments)
}

/// Runs the program offline, on the data directory of a stopped node.
fn offline(cluster: &Cluster, number: usize, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = cluster.program(number)?;
    command.args(arguments).arg("--data").arg(cluster.node(number).data_dir());
    let output = tokio::task::block_in_place(|| output(command))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), text))
}

/// Nobody can be elected, since two of three voters have lost entries; but the third is known to have them all.
#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_replicas_damaged_at_different_places_recover_by_themselves() -> Result<()> {
    let (mut cluster, log, history) = stopped().await?;
    for number in [0, 1] {
        std::fs::remove_file(&segments(&cluster, number, log)?[number])?;
    }
    cluster.start_all()?;
    cluster.settled().await?;
    cluster
        .eventually("the damage of both is found and set aside", async |cluster| {
            for number in [0, 1] {
                let folder = cluster.node(number).data_dir().join("logs").join(log.to_string());
                ensure!(folder.join("quarantine-1").exists(), "node-{number}");
            }
            Ok(())
        })
        .await?;
    cluster.check_disks(TOPIC, &history).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_damaged_controller_logs_recover_by_themselves() -> Result<()> {
    let (mut cluster, _, history) = stopped().await?;
    for number in [0, 1] {
        replica::flip_in_first_record(&segments(&cluster, number, CONTROLLER)?[0])?;
        // After a clean close only entries that the checkpoint does not cover are read.
        let folder = cluster.node(number).data_dir().join("logs").join(CONTROLLER.to_string());
        std::fs::remove_file(folder.join("checkpoint"))?;
    }
    cluster.start_all()?;
    cluster.settled().await?;
    for number in [0, 1] {
        cluster.metadata(number, TOPIC).await?;
    }
    cluster.check_disks(TOPIC, &history).await?;
    cluster.finish()
}

/// Two replicas have lost entries, and the machine of the third is gone: only a person can accept what that means.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_names_the_source_when_nothing_else_can_tell() -> Result<()> {
    let (mut cluster, log, _) = stopped().await?;
    let (source, copy, gone) = (0, 1, 2);
    std::fs::remove_file(&segments(&cluster, copy, log)?[0])?;
    let lost = segments(&cluster, source, log)?.pop().context("a segment")?;
    std::fs::remove_file(lost)?;
    for number in [source, copy] {
        cluster.node_mut(number).launch()?;
    }
    cluster.wait_ready(&[source, copy])?;
    let refused = api::append(&mut api::log(cluster.node(source).address()).await?, TOPIC, "x".into()).await;
    ensure!(refused.is_err(), "two damaged replicas of three accept an append");
    for number in [source, copy] {
        cluster.terminate(number)?;
    }

    let name = log.to_string();
    let (done, said) = offline(&cluster, source, &["debug", "recover", "--log", &name, "--source", "--yes"])?;
    ensure!(done && said.contains("source"), "{said}");
    let (done, said) = offline(&cluster, copy, &["debug", "recover", "--log", &name, "--copy", "--yes"])?;
    ensure!(done, "{said}");
    for number in [source, copy] {
        cluster.node_mut(number).launch()?;
    }
    cluster.wait_ready(&[source, copy])?;
    let end = cluster
        .eventually("an append to the recovered partition", async |cluster| {
            let leader = cluster.leader(TOPIC, 0).await?;
            Ok(api::append(&mut api::log(cluster.node(leader).address()).await?, TOPIC, "after".into()).await?)
        })
        .await?;
    // The third has what the source has lost, under offsets that are taken now: it gives way.
    let (done, said) = offline(&cluster, gone, &["debug", "recover", "--log", &name, "--copy", "--yes"])?;
    ensure!(done, "{said}");
    cluster.restart(gone)?;
    cluster.caught_up(TOPIC).await?;
    let leader = cluster.leader(TOPIC, 0).await?;
    let read = api::read_all(cluster.node(leader).address(), TOPIC, 1 << 20).await?;
    ensure!(read.len() as i64 == end + 1, "{} records, {} expected", read.len(), end + 1);
    cluster.finish()
}

/// The same while the nodes run: the command shows what each replica has, and needs no leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_names_the_source_while_the_nodes_run() -> Result<()> {
    let (mut cluster, log, _) = stopped().await?;
    std::fs::remove_file(&segments(&cluster, 1, log)?[0])?;
    std::fs::remove_file(segments(&cluster, 0, log)?.pop().context("a segment")?)?;
    for number in [0, 1] {
        cluster.node_mut(number).launch()?;
    }
    cluster.wait_ready(&[0, 1])?;
    let run = |cluster: &Cluster, more: &str| -> Result<(bool, String)> {
        let mut command = cluster.program(1)?;
        command.args(["cluster", "recover", "--partition", &format!("{TOPIC}/0"), "--source", "node-0", more]);
        let output = tokio::task::block_in_place(|| output(command))?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    };
    cluster
        .eventually("both replicas are known to be damaged", async |cluster| {
            let (done, said) = run(cluster, "--dry-run")?;
            ensure!(done && said.matches(" yes ").count() == 2, "{said}");
            Ok(())
        })
        .await?;
    let (done, said) = run(&cluster, "--yes")?;
    ensure!(!done && said.contains("1 of 3 replicas did not take part"), "node-2 does not run: {said}");
    cluster
        .eventually("an append to the recovered partition", async |cluster| {
            let leader = cluster.leader(TOPIC, 0).await?;
            Ok(api::append(&mut api::log(cluster.node(leader).address()).await?, TOPIC, "after".into()).await?)
        })
        .await?;
    let (done, said) = run(&cluster, "--yes")?;
    ensure!(!done && said.contains("nothing to recover"), "the partition has a leader: {said}");
    cluster.finish()
}

/// One bad bit in a journal ends the node with a text that names the way out, which loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_refused_repaired_by_a_command_and_its_node_filled_again() -> Result<()> {
    let (mut cluster, log, history) = stopped().await?;
    let victim = 0;
    let meta = cluster.node(victim).data_dir().join("meta");
    let journal = std::fs::read_dir(&meta)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal-")))
        .context("a journal")?;
    let bytes = std::fs::metadata(&journal)?.len();
    // A whole word: the padding of a record is not checked.
    for at in 0..8 {
        replica::flip_byte(&journal, bytes / 4 * 3 + at)?;
    }
    let others = [1, 2];
    for number in others {
        cluster.node_mut(number).launch()?;
    }
    cluster.wait_ready(&others)?;
    let refused = format!("{:#}", cluster.restart(victim).err().context("a node with a damaged journal starts")?);
    ensure!(refused.contains("is damaged at byte") && refused.contains("debug repair-journal"), "{refused}");
    let (done, said) = offline(&cluster, victim, &["debug", "repair-journal"])?;
    ensure!(done && said.contains("quarantine-1"), "{said}");
    let (done, again) = offline(&cluster, victim, &["debug", "repair-journal"])?;
    ensure!(done && again.contains("not damaged"), "{again}");
    cluster.restart(victim)?;
    cluster.settled().await?;
    cluster.caught_up(TOPIC).await?;
    // Its votes count again: the other two have no majority without it.
    cluster.kill(others[0]);
    cluster.eventually("a new topic", async |cluster| cluster.create_topic("after", 1, 1, None).await).await?;
    cluster.restart(others[0])?;
    cluster.settled().await?;
    ensure!(segments(&cluster, victim, log)?.len() > 1, "the log is there");
    cluster.check_disks(TOPIC, &history).await?;
    cluster.finish()
}

/// A node alone is told what its journal may have lost, and keeps its records when that is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn the_damaged_journal_of_the_only_node_is_repaired_when_the_loss_is_accepted() -> Result<()> {
    let mut cluster = Cluster::of(1).start().await?;
    cluster.create_topic(TOPIC, 1, 1, None).await?;
    let mut client = api::log(cluster.node(0).address()).await?;
    for number in 0..20 {
        api::append(&mut client, TOPIC, format!("kept {number}").into()).await?;
    }
    cluster.terminate(0)?;
    let meta = cluster.node(0).data_dir().join("meta");
    for entry in std::fs::read_dir(&meta)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal-")) {
            let bytes = std::fs::metadata(&path)?.len();
            replica::flip_byte(&path, bytes - 24)?;
        }
    }
    ensure!(cluster.restart(0).is_err(), "it starts");
    let (done, said) = offline(&cluster, 0, &["debug", "repair-journal"])?;
    ensure!(!done && said.contains("--accept-loss"), "{said}");
    let (done, said) = offline(&cluster, 0, &["debug", "repair-journal", "--accept-loss"])?;
    ensure!(done, "{said}");
    cluster.restart(0)?;
    let read = api::read_all(cluster.node(0).address(), TOPIC, 1 << 20).await?;
    ensure!(read.len() == 20 && read[19].value.as_deref() == Some(b"kept 19"), "{} records", read.len());
    cluster.finish()
}
