//! Ten times what a node can take: it refuses what is too much, its memory stays under its bound, and it serves as before when
//! the flood is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chronicle_tests::node::{Node, PATIENCE, Setup};
use chronicle_tests::{api, length};
use tokio::task::JoinSet;

const TOPIC: &str = "default";
const VALUE_BYTES: usize = 256 << 10;
const MIB: u64 = 1 << 20;

/// What the node may have in memory beyond what it has at rest, by its configuration below: bytes in flight, appends that wait
/// to be written, and what HTTP/2 may hold unread per connection, and a quarter more, by which the allocator rounds up. See
/// "Memory" in `docs/security.md`.
const BOUND_BYTES: u64 = ((32 + 32) * MIB + CONNECTIONS as u64 * 4 * MIB) / 4 * 5;
const CONNECTIONS: usize = 16;
const CALLS_PER_CONNECTION: usize = 40;

fn in_flight(node: &Node) -> Result<f64> {
    node.metric("chronicle_in_flight_bytes")?.context("chronicle_in_flight_bytes")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_too_much_is_refused_in_bounds_and_service_returns() -> Result<()> {
    let setup = Setup::new()
        .set("limits.request-bytes-max", MIB)
        .set("limits.fetch-bytes-max", MIB)
        .set("limits.in-flight-bytes-max", 32 * MIB)
        .set("limits.principal-bytes-max", 32 * MIB)
        .set("limits.connection-bytes-max", 16 * MIB)
        .set("partitions.queue-bytes-max", 16 * MIB)
        .set("storage.pending-bytes-max", 32 * MIB);
    let node = tokio::task::block_in_place(|| setup.start())?;
    let address = node.address();
    let value = |number: u64| Bytes::from([&number.to_be_bytes()[..], &vec![b'x'; VALUE_BYTES]].concat());
    // What it takes at most, without too much: four calls at a time.
    let (stop, numbers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let flood = async |connections: usize, calls: usize, time: Duration| -> Result<(Vec<(i64, u64)>, u64)> {
        stop.store(false, Ordering::Relaxed);
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let channel = api::connect(address).await?;
            for _ in 0..calls {
                let mut client = api::log_on(channel.clone());
                let (stop, numbers) = (stop.clone(), numbers.clone());
                tasks.spawn(async move {
                    let (mut accepted, mut refused) = (Vec::new(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        let number = numbers.fetch_add(1, Ordering::Relaxed);
                        match api::append(&mut client, TOPIC, value(number)).await {
                            Ok(offset) => accepted.push((offset, number)),
                            Err(status) if api::reason(&status) == "OVERLOADED" => refused += 1,
                            Err(status) => anyhow::bail!("{status:?}"),
                        }
                    }
                    Ok((accepted, refused))
                });
            }
        }
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        let mut sum = (Vec::new(), 0);
        while let Some(done) = tasks.join_next().await {
            let (accepted, refused) = done??;
            sum.0.extend(accepted);
            sum.1 += refused;
        }
        Ok(sum)
    };
    let seconds = length(Duration::from_secs(3));
    let (mut accepted, refused) = flood(2, 2, seconds).await?;
    ensure!(refused == 0 && !accepted.is_empty(), "{} accepted, {refused} refused at ease", accepted.len());
    let (at_ease, rest) = (accepted.len(), node.memory_bytes("VmRSS")?);

    let (more, refused) = flood(CONNECTIONS, CALLS_PER_CONNECTION, seconds).await?;
    let peak = node.memory_bytes("VmHWM")?.saturating_sub(rest);
    println!(
        "at ease {at_ease} appends; flooded {} and {refused} refused; memory {} MiB over {} MiB, bound {} MiB",
        more.len(),
        peak / MIB,
        rest / MIB,
        BOUND_BYTES / MIB
    );
    ensure!(refused > 0, "{} calls at once were not too much", CONNECTIONS * CALLS_PER_CONNECTION);
    ensure!(!more.is_empty(), "nothing was accepted while it was flooded");
    ensure!(peak < BOUND_BYTES, "{} MiB more than at rest", peak / MIB);
    accepted.extend(more);

    let deadline = Instant::now() + PATIENCE;
    while in_flight(&node)? > 0.0 {
        ensure!(Instant::now() < deadline, "{} bytes are still in flight", in_flight(&node)?);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (after, refused) = flood(2, 2, seconds).await?;
    ensure!(refused == 0 && !after.is_empty(), "{} accepted, {refused} refused after the flood", after.len());
    accepted.extend(after);

    let stored = api::read_all(address, TOPIC, MIB as u32).await?;
    ensure!(stored.len() >= accepted.len(), "{} stored of {}", stored.len(), accepted.len());
    for (offset, number) in accepted {
        let record = stored.get(usize::try_from(offset)?).with_context(|| format!("offset {offset} is gone"))?;
        ensure!(
            record.value.as_ref().is_some_and(|stored| stored[..8] == number.to_be_bytes()),
            "offset {offset} changed"
        );
    }
    Ok(())
}
