//! Power failures of a real node on real files: its changes of files are recorded, and of the states in which a failure may leave them, a
//! few hundred are rebuilt and opened. Whatever was acknowledged before the failure is there.
//!
//! Every generation starts on a state of the one before, so that recovery is interrupted too. `CHRONICLE_POWER_SEED` repeats the choice
//! of states, not the timing of the node; `CHRONICLE_TEST_FACTOR` multiplies their number.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chronicle_log::disk::RealDisk;
use chronicle_log::{EntryKind, LogConfig, LogId, Store, StoreConfig, Threads};
use chronicle_proto::v1;
use chronicle_records::{Limits, records, split};
use chronicle_tests::faults::FaultyMachine;
use chronicle_tests::node::{Node, Setup};
use chronicle_tests::powerloss::{RecordedDisk, calls};
use chronicle_tests::{api, length};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;

const GENERATIONS: usize = 3;
/// States that are opened, of each generation.
const STATES: u32 = 100;
/// Appends of each generation.
const APPENDS: usize = 250;
const WRITERS: usize = 4;
/// Segments of the smallest size, so that they are finished, sealed and deleted.
const SEGMENT_BYTES: i64 = 64 << 10;
/// A topic that keeps everything, and one that keeps little.
const TOPICS: [(&str, i64); 2] = [("kept", -1), ("short", 2 * SEGMENT_BYTES)];

/// An append that was answered.
#[derive(Debug, Clone)]
struct PowerAck {
    /// When the answer had arrived, by the clock of the recorded calls.
    nanos: u64,
    topic: &'static str,
    offset: u64,
    value: Bytes,
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Appends records of different sizes to both topics, several at a time.
async fn write(node: &Node, generation: usize) -> Result<Vec<PowerAck>> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let address = node.address();
        writers.spawn(async move {
            let mut client = api::log(address).await?;
            let mut acknowledged = Vec::new();
            for number in 0..APPENDS / WRITERS {
                let (topic, _) = TOPICS[(number + writer) % TOPICS.len()];
                let size = [10, 300, 3000, 20_000][number % 4];
                let value = Bytes::from(format!("{generation}/{writer}/{number}/{}", "x".repeat(size)));
                let offset = u64::try_from(api::append(&mut client, topic, value.clone()).await?)?;
                acknowledged.push(PowerAck { nanos: now(), topic, offset, value });
            }
            anyhow::Ok(acknowledged)
        });
    }
    let mut all = Vec::new();
    while let Some(written) = writers.join_next().await {
        all.extend(written??);
    }
    Ok(all)
}

/// What the log of a topic has in a data folder: its first offset, and the values from there on. The folder is opened as a node does.
fn stored(store: &Store, log: LogId) -> Result<(u64, Vec<Bytes>)> {
    let log = store.open_log(log, LogConfig::default())?;
    let mut next = log.position().first_index;
    let start = log.position().start_offset;
    let mut values = Vec::new();
    loop {
        let entries = log.read(next, u64::MAX, 1 << 20)?;
        let Some(last) = entries.last() else { break };
        next = last.entry.index + 1;
        for entry in entries.iter().filter(|entry| entry.entry.kind == EntryKind::Data) {
            for batch in split(&entry.entry.payload) {
                for record in records(&batch?.1, &Limits::default())? {
                    values.push(record?.value.context("a record without a value")?);
                }
            }
        }
    }
    ensure!(start + values.len() as u64 == log.position().next_offset, "records and offsets disagree");
    Ok((start, values))
}

/// Opens a state and looks for everything that was acknowledged.
fn check(dir: &Path, logs: &BTreeMap<&str, LogId>, acknowledged: &[&PowerAck]) -> Result<()> {
    let config = StoreConfig { threads: Threads::Driven { on_work: None }, ..StoreConfig::default() };
    let store = Store::open(Arc::new(RealDisk), dir, config)?;
    for log in store.list_logs()? {
        store.open_log(log, LogConfig::default()).with_context(|| format!("{log}"))?.load_checkpoint()?;
    }
    for (topic, log) in logs {
        let wanted: Vec<&&PowerAck> = acknowledged.iter().filter(|ack| ack.topic == *topic).collect();
        if wanted.is_empty() {
            continue;
        }
        let (start, values) = stored(&store, *log).with_context(|| format!("topic {topic}"))?;
        let (_, keeps) = TOPICS.iter().find(|(name, _)| name == topic).context("an unknown topic")?;
        ensure!(*keeps >= 0 || start == 0, "topic {topic} starts at offset {start}");
        for PowerAck { offset, value, .. } in wanted.into_iter().filter(|ack| ack.offset >= start) {
            let found = values.get(usize::try_from(offset - start)?);
            ensure!(
                found == Some(value),
                "topic {topic}, offset {offset}: {:?} was acknowledged, {:?} is there, of {} records from {start}",
                head(value),
                found.map(head),
                values.len()
            );
        }
    }
    Ok(())
}

fn head(value: &Bytes) -> String {
    String::from_utf8_lossy(&value[..value.len().min(20)]).into_owned()
}

async fn log_of(node: &Node, topic: &str) -> Result<LogId> {
    let request = v1::GetMetadataRequest { topics: vec![topic.to_owned()] };
    let mut answer = api::cluster(node.address()).await?.get_metadata(request).await?.into_inner();
    Ok(LogId { topic: answer.topics.pop().context("no such topic")?.id.parse()?, partition: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_failure_at_any_moment_leaves_all_that_was_acknowledged() -> Result<()> {
    let seed = match std::env::var("CHRONICLE_POWER_SEED") {
        Ok(seed) => seed.parse().context("CHRONICLE_POWER_SEED: must be a number")?,
        Err(_) => rand::rng().next_u64(),
    };
    println!("CHRONICLE_POWER_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let states = STATES * u32::try_from(length(Duration::from_secs(1)).as_secs())?;
    let scratch = tempfile::tempdir()?;
    let root = scratch.path().canonicalize()?.join("data");
    let mut acknowledged: Vec<PowerAck> = Vec::new();
    let mut logs = BTreeMap::new();
    for generation in 0..GENERATIONS {
        let mut disk = RecordedDisk::of(root.clone())?;
        let machine = Arc::new(FaultyMachine::new(true)?);
        let setup = Setup::new().data_dir(&root).on(machine.clone()).set("partitions.retention-check-ms", 200);
        let mut node = tokio::task::block_in_place(|| setup.start())?;
        for (topic, retention_bytes) in TOPICS.iter().filter(|_| generation == 0) {
            let settings = v1::TopicSettings {
                segment_bytes: Some(SEGMENT_BYTES),
                retention_bytes: Some(*retention_bytes),
                ..Default::default()
            };
            api::create_topic(node.address(), topic, 1, Some(settings)).await?;
            logs.insert(*topic, log_of(&node, topic).await?);
        }
        let before = acknowledged.len();
        acknowledged.extend(write(&node, generation).await?);
        ensure!(acknowledged.len() > before, "nothing was acknowledged");
        // A clean stop writes marks that a kill does not.
        match generation % 2 {
            0 => drop(tokio::task::block_in_place(|| node.terminate())?),
            _ => tokio::task::block_in_place(|| node.kill()),
        }

        let calls = calls(&machine.recorded()?)?;
        let mut cuts: Vec<usize> = (0..states).map(|_| random.random_range(0..=calls.len())).collect();
        cuts.sort_unstable();
        // The state on which the next generation starts.
        let chosen = random.random_range(cuts.len() / 2..cuts.len());
        let mut done = 0;
        let mut next = None;
        for (number, cut) in cuts.into_iter().enumerate() {
            for call in &calls[done..cut] {
                disk.carry_out(call)?;
            }
            done = cut;
            // Everything before the next call was answered for because of calls before it.
            let moment = calls.get(cut).map_or(u64::MAX, |call| call.nanos);
            let kept = [0.0, 0.2, 0.5, 0.8, 1.0][random.random_range(0..5)];
            let which = random.next_u64();
            let state = scratch.path().join("state");
            disk.after_power_failure(&state, kept, &mut StdRng::seed_from_u64(which))?;
            let before: Vec<&PowerAck> = acknowledged.iter().filter(|ack| ack.nanos < moment).collect();
            check(&state, &logs, &before).with_context(|| {
                let context = format!("seed {seed}, generation {generation}, after {cut} of {} calls", calls.len());
                format!("{context}, each change kept with probability {kept}")
            })?;
            std::fs::remove_dir_all(&state)?;
            if number == chosen {
                disk.after_power_failure(&state, kept, &mut StdRng::seed_from_u64(which))?;
                let kept = scratch.path().join("next");
                std::fs::rename(&state, &kept)?;
                next = Some((kept, moment));
            }
        }
        println!("generation {generation}: {} calls, {} acknowledged", calls.len(), acknowledged.len());
        let (kept, moment) = next.context("no state was chosen")?;
        acknowledged.retain(|ack| ack.nanos < moment);
        std::fs::remove_dir_all(&root)?;
        std::fs::rename(kept, &root)?;
    }
    Ok(())
}
