//! The harness of the cluster tests on one node: writers and a reader through kills, checked against the disk.

use anyhow::{Context, Result, ensure};
use chronicle_log::LogId;
use chronicle_proto::v1;
use chronicle_tests::history::{Following, Load, check_read};
use chronicle_tests::node::{Node, PATIENCE, Setup};
use chronicle_tests::{api, replica};

async fn log_id(node: &Node, topic: &str) -> Result<LogId> {
    let request = v1::DescribeTopicRequest { name: topic.into() };
    let answer = api::admin(node.address()).await?.describe_topic(request).await?.into_inner();
    Ok(LogId { topic: answer.topic.context("a topic")?.id.parse()?, partition: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_and_returned_records_are_on_the_disk_after_kills() -> Result<()> {
    let mut node = Setup::new().start()?;
    api::create_topic(node.address(), "kept", 1, None).await?;
    let servers = node.address().to_string();
    let following = Following::start(&servers, "kept", 0)?;
    let writing = Load::new("kept").start(&servers)?;
    for _ in 0..3 {
        writing.progress(200, PATIENCE).await?;
        tokio::task::block_in_place(|| node.restart())?;
    }
    writing.progress(200, PATIENCE).await?;
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    ensure!(history.acknowledged() >= 800, "{} acknowledged", history.acknowledged());
    let read = following.read_to(history.end(0)).await?;
    let log = log_id(&node, "kept").await?;
    tokio::task::block_in_place(|| node.terminate())?;
    let stored = replica::read(node.data_dir(), log)?;
    history.check(0, &stored)?;
    check_read(&read, &stored)?;

    // A log that is shorter, or says something else, does not pass.
    ensure!(history.check(0, &stored[..stored.len() - 1]).is_err(), "a lost record is not noticed");
    let file = replica::segments(node.data_dir(), log)?.pop().context("a segment")?;
    replica::flip_in_last_record(&file)?;
    ensure!(replica::read(node.data_dir(), log).is_err(), "damage is not noticed");
    Ok(())
}
