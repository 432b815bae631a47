//! The Rust client library on real input through kills of the node: what its users get without doing anything for it.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use chronicle_client::{Client, ConsumerConfig, Delivery, Partition, Position, ProducerConfig, Record};
use chronicle_tests::node::Setup;
use chronicle_tests::{api, input};

#[tokio::test(flavor = "multi_thread")]
async fn producer_and_consumer_of_the_library_lose_and_double_nothing_through_kill_9() -> Result<()> {
    let items = input::lines()?;
    let mut node = Setup::new().start()?;
    let client = Client::connect(node.address().to_string())?;
    let producer = client.producer(Partition::new("default", 0), ProducerConfig::default());
    let mut consumer = client.consumer(
        Partition::new("default", 0),
        ConsumerConfig::from(Position::Earliest).until(i64::try_from(items.len())?),
    );
    // Follows the log while it is written and while the node comes and goes.
    let reader = tokio::spawn(async move {
        let mut records = Vec::new();
        while let Some(record) = consumer.next().await? {
            records.push(record);
        }
        Ok::<_, chronicle_client::ClientError>(records)
    });

    let mut deliveries: VecDeque<Delivery> = VecDeque::new();
    let mut offsets = Vec::with_capacity(items.len());
    for (number, item) in items.iter().enumerate() {
        deliveries.push_back(producer.send(Record::keyed(item.key.clone(), item.value.clone())).await?);
        if deliveries.len() > 1000 {
            offsets.push(deliveries.pop_front().context("there are a thousand")?.await?);
        }
        // In the middle, with a thousand deliveries open.
        if number % (items.len() / 4) == items.len() / 5 {
            tokio::task::block_in_place(|| {
                node.kill();
                node.restart()
            })?;
        }
    }
    for delivery in deliveries {
        offsets.push(delivery.await?);
    }
    producer.close().await?;
    for (number, offset) in offsets.iter().enumerate() {
        ensure!(*offset == i64::try_from(number)?, "record {number} was acknowledged at offset {offset}");
    }

    let followed = reader.await??;
    let stored = api::read_all(node.address(), "default", 1 << 20).await?;
    for (what, records) in [("stored", &stored), ("followed", &followed)] {
        ensure!(records.len() == items.len(), "{} records {what} of {}", records.len(), items.len());
        for (item, record) in items.iter().zip(records) {
            let same = record.key.as_ref() == Some(&item.key) && record.value.as_ref() == Some(&item.value);
            ensure!(same, "{what}: offset {} is not what was sent", record.offset);
        }
    }
    Ok(())
}
