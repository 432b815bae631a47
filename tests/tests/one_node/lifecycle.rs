//! Partitions come and go: asleep when nobody uses them, awake on use, and the same to everybody who looks.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chronicle_proto::v1;
use chronicle_proto::v1::admin_client::AdminClient;
use chronicle_tests::api;
use chronicle_tests::node::{Node, PATIENCE, Setup};

async fn describe(node: &Node, topic: &str) -> Result<Vec<v1::PartitionDescription>> {
    let mut admin = AdminClient::new(api::connect(node.address()).await?);
    Ok(admin.describe_topic(v1::DescribeTopicRequest { name: topic.into() }).await?.into_inner().partitions)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dormant_partition_is_described_as_before_and_opens_on_use() -> Result<()> {
    let node = Setup::new().set("partitions.idle-ms", 200).start()?;
    api::create_topic(node.address(), "naps", 3, None).await?;
    let mut client = api::log(node.address()).await?;
    for number in 0..10 {
        api::append(&mut client, "naps", format!("record {number}").into()).await?;
    }
    let deadline = Instant::now() + PATIENCE;
    let asleep = loop {
        let partitions = describe(&node, "naps").await?;
        if partitions.iter().all(|partition| partition.state == "dormant") {
            break partitions;
        }
        ensure!(Instant::now() < deadline, "still awake: {partitions:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(asleep.len() == 3, "{} partitions described of 3", asleep.len());
    ensure!((asleep[0].earliest, asleep[0].next) == (0, 10), "asleep: {:?}", asleep[0]);
    ensure!((asleep[1].earliest, asleep[1].next) == (0, 0), "never used: {:?}", asleep[1]);

    // A read wakes it, and so does an append.
    let stored = api::read_all(node.address(), "naps", 1 << 20).await?;
    ensure!(stored.len() == 10, "{} records after waking", stored.len());
    ensure!(api::append(&mut client, "naps", "awake".into()).await? == 10, "the offsets do not go on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_reader_of_a_sleeping_partition_gets_what_is_appended() -> Result<()> {
    let node = Setup::new().set("partitions.idle-ms", 200).start()?;
    let mut reader = api::log(node.address()).await?;
    let request = v1::ConsumeStreamRequest {
        partition: api::partition("default"),
        from: Some(v1::Position { at: Some(v1::position::At::Earliest(true)) }),
        until_offset: Some(2),
        ..Default::default()
    };
    let follower = tokio::spawn(async move {
        let mut stream = reader.consume_stream(request).await?.into_inner();
        let mut records = Vec::new();
        while let Some(answer) = stream.message().await? {
            records.extend(answer.records);
        }
        Ok::<_, tonic::Status>(records)
    });
    let mut writer = api::log(node.address()).await?;
    api::append(&mut writer, "default", "one".into()).await?;
    // Several times the idle limit: a waiting reader is a use, or is woken again; it must not matter which.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    api::append(&mut writer, "default", "two".into()).await?;
    let records = tokio::time::timeout(PATIENCE, follower).await???;
    let values: Vec<_> = records.iter().filter_map(|record| record.value.as_deref()).collect();
    ensure!(values == [b"one".as_slice(), b"two"], "followed {values:?}");
    Ok(())
}
