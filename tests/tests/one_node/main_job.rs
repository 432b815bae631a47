//! The main job on real input: the lines of the machine's package log and the sources of real crates go in, and the same
//! bytes come out, over gRPC and over HTTP, also when the node is killed in the middle.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1::StoredRecord;
use chronicle_tests::node::Setup;
use chronicle_tests::writer::{Options, Outcome, write_all};
use chronicle_tests::{api, input};
use tokio::sync::watch;

/// Crates whose sources are read: in every build of this workspace, and some megabytes together.
const CRATES: &[&str] = &["tokio", "hyper", "serde_json", "openraft"];

/// Default `max_message_bytes` of a topic is 1 MiB and framing; a file's record must fit with its key.
const FILE_BYTES_MAX: usize = 1 << 20;

const READ_BYTES: u32 = 1 << 20;

fn everything() -> Result<Vec<input::Item>> {
    let mut items = input::lines()?;
    items.extend(input::sources(CRATES, FILE_BYTES_MAX)?.0);
    Ok(items)
}

/// Compares without printing megabytes.
fn same(stored: &[StoredRecord], items: &[input::Item]) -> Result<()> {
    for (offset, (record, item)) in stored.iter().zip(items).enumerate() {
        let key = String::from_utf8_lossy(&item.key);
        ensure!(record.offset == i64::try_from(offset)?, "{key}: stored at offset {}, not {offset}", record.offset);
        ensure!(record.key.as_ref() == Some(&item.key), "offset {offset}: the key is not {key}");
        ensure!(record.value.as_ref() == Some(&item.value), "offset {offset}: the value of {key} differs");
    }
    ensure!(stored.len() == items.len(), "{} records stored of {}", stored.len(), items.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn real_files_come_back_byte_for_byte_over_grpc_and_http() -> Result<()> {
    let mut node = Setup::new().start()?;
    let address = node.address();
    let (told, _) = watch::channel(0);
    let lists = [("lines", input::lines()?), ("sources", input::sources(CRATES, FILE_BYTES_MAX)?.0)];
    for (topic, items) in &lists {
        api::create_topic(address, topic, 1, None).await?;
        write_all(address, topic, items, Options { idempotent: false, ..Options::default() }, &told).await?;
    }
    for (topic, items) in &lists {
        same(&api::read_all(address, topic, READ_BYTES).await?, items).with_context(|| format!("{topic} over gRPC"))?;
        let http = api::read_all_http(address, topic, READ_BYTES).await?;
        same(&http, items).with_context(|| format!("{topic} over HTTP"))?;
    }
    let (status, log) = node.terminate()?;
    ensure!(status.success(), "SIGTERM ends the node with {status}:\n{log}");
    node.restart()?;
    for (topic, items) in &lists {
        let again = api::read_all(address, topic, READ_BYTES).await?;
        same(&again, items).with_context(|| format!("{topic} after a restart"))?;
    }
    Ok(())
}

/// Writes `items` while the node is killed and restarted each time another fifth of them is acknowledged.
async fn write_through_kills(
    node: &mut chronicle_tests::node::Node,
    topic: &str,
    items: &[input::Item],
    options: Options,
) -> Result<Vec<Outcome>> {
    let (told, mut acknowledged) = watch::channel(0);
    let address = node.address();
    let (to, list) = (topic.to_string(), items.to_vec());
    let writer = tokio::spawn(async move { write_all(address, &to, &list, options, &told).await });
    for fifth in 1..5 {
        // Fails when the writer has ended, whose own error then says more.
        if acknowledged.wait_for(|count| *count >= items.len() * fifth / 5).await.is_err() {
            break;
        }
        tokio::task::block_in_place(|| {
            node.kill();
            node.restart()
        })?;
    }
    writer.await?
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_producer_stores_everything_exactly_once_and_in_order_through_kill_9() -> Result<()> {
    let items = everything()?;
    let mut node = Setup::new().start()?;
    api::create_topic(node.address(), "all", 1, None).await?;
    let outcomes = write_through_kills(&mut node, "all", &items, Options::default()).await?;
    for (index, outcome) in outcomes.iter().enumerate() {
        ensure!(*outcome == Outcome::Acknowledged(i64::try_from(index)?), "record {index}: {outcome:?}");
    }
    same(&api::read_all(node.address(), "all", READ_BYTES).await?, &items)?;
    // Once more from the disk alone.
    tokio::task::block_in_place(|| {
        node.kill();
        node.restart()
    })?;
    same(&api::read_all(node.address(), "all", READ_BYTES).await?, &items)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_idempotence_every_acknowledged_record_survives_kill_9_once_and_in_order() -> Result<()> {
    let items = everything()?;
    let mut node = Setup::new().start()?;
    api::create_topic(node.address(), "all", 1, None).await?;
    let options = Options { idempotent: false, ..Options::default() };
    let outcomes = write_through_kills(&mut node, "all", &items, options).await?;
    let stored = api::read_all(node.address(), "all", READ_BYTES).await?;

    let places: HashMap<_, _> = items.iter().enumerate().map(|(index, item)| (item.key.clone(), index)).collect();
    let mut last = None;
    for record in &stored {
        let key = record.key.clone().context("a record without a key")?;
        let index = *places.get(&key).with_context(|| format!("{key:?} was never written"))?;
        ensure!(record.value.as_ref() == Some(&items[index].value), "{key:?}: the value differs");
        ensure!(last < Some(index), "{key:?} is stored twice or out of order at offset {}", record.offset);
        ensure!(outcomes[index] != Outcome::Refused, "{key:?} was refused and is stored");
        last = Some(index);
    }
    let mut acknowledged = 0;
    for (item, outcome) in items.iter().zip(&outcomes) {
        if let Outcome::Acknowledged(offset) = outcome {
            acknowledged += 1;
            let record =
                stored.get(usize::try_from(*offset)?).with_context(|| format!("offset {offset} is missing"))?;
            ensure!(record.key.as_ref() == Some(&item.key), "offset {offset} holds another record than acknowledged");
        }
    }
    println!("{acknowledged} acknowledged, {} stored, {} written", stored.len(), items.len());
    // Four kills with at most a window of requests open each time.
    ensure!(acknowledged > items.len() / 2, "only {acknowledged} of {} acknowledged", items.len());
    Ok(())
}
