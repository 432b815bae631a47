//! Measures a node over gRPC on loopback: one producer, many producers, and a stream of batches.

use std::time::Duration;

use anyhow::Result;
use chronicle_tests::node::Setup;
use tokio::runtime::Runtime;

use super::disk::append_and_sync;
use super::engine::median;
use super::load::{Place, RECORD_BYTES, Way, producers, streaming, unbatched, unbatched_stream};
use super::report::{Report, Rule};
use super::{Bench, probe};

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("grpc")?;
    let node = Setup::new().data_dir(dir.join("data")).start()?;
    let place = Place { address: node.address(), topic: "default" };
    let runtime = Runtime::new()?;
    let span = Duration::from_millis(bench.size(2000, 1000));
    let samples = bench.size(200, 100);
    let [mut raw_p50, mut one_p50, mut one, mut many, mut raw, mut stream, mut node_cores, mut own_cores] =
        [const { Vec::new() }; 8];
    let [mut streamed_p50, mut streamed_many] = [const { Vec::new() }; 2];
    for _ in 0..bench.size(9, 3) {
        raw_p50.push(median(append_and_sync(&dir.join("single.raw"), RECORD_BYTES, samples)?) * 1e6);
        let seconds = runtime.block_on(unbatched(place, samples))?;
        one.push(seconds.len() as f64 / seconds.iter().sum::<f64>());
        one_p50.push(median(seconds) * 1e6);
        streamed_p50.push(median(runtime.block_on(unbatched_stream(place, samples))?) * 1e6);
        many.push(runtime.block_on(producers(place, span, Way::Calls))?);
        streamed_many.push(runtime.block_on(producers(place, span, Way::Stream))?);

        let groups = 32;
        let seconds: f64 = append_and_sync(&dir.join("groups.raw"), 1 << 20, groups)?.iter().sum();
        raw.push((groups << 20) as f64 / 1e6 / seconds);
        let (node_cpu, own_cpu) = (probe::cpu_seconds(node.pid())?, probe::cpu_seconds(std::process::id())?);
        let (bytes, seconds) = runtime.block_on(streaming(place, span))?;
        stream.push(bytes / 1e6 / seconds);
        node_cores.push((probe::cpu_seconds(node.pid())? - node_cpu) / seconds);
        own_cores.push((probe::cpu_seconds(std::process::id())? - own_cpu) / seconds);
    }
    let raw_p50 = report.figure("disk: write + fdatasync, 1 KiB, p50 (beside gRPC)", "us", raw_p50);
    let one_p50 = report.figure("node: one unbatched producer, a call per record, p50", "us", one_p50);
    let streamed_p50 = report.figure("node: one unbatched producer on a stream, p50", "us", streamed_p50);
    let one = report.figure("node: one unbatched producer, a call per record", "records/s", one);
    let many = report.figure("node: 64 producers, a call per record, a connection each", "records/s", many);
    let streamed_many =
        report.figure("node: 64 producers, a stream and a connection each, one in flight", "records/s", streamed_many);
    let raw = report.figure("disk: write + fdatasync, 1 MiB (beside gRPC)", "MB/s", raw);
    let stream = report.figure("node: one stream of 512 KiB requests of 1 KiB records", "MB/s", stream);
    let cores = report.figure("node: cores used meanwhile", "cores", node_cores);
    let own = report.figure("client: cores used meanwhile", "cores", own_cores);
    report.target(
        "node: 64 producers on streams / one unbatched producer",
        streamed_many / one,
        Rule::AtLeast,
        20.0,
        "x",
    );
    report.target("node: 64 producers with calls / one unbatched producer", many / one, Rule::AtLeast, 20.0, "x");
    report.target("node: p50 of one append on a stream - raw p50", streamed_p50 - raw_p50, Rule::AtMost, 250.0, "us");
    report.target("node: p50 of one append by a call - raw p50", one_p50 - raw_p50, Rule::AtMost, 250.0, "us");
    report.target("node: batched stream / raw durable write (or one full core)", stream / raw, Rule::AtLeast, 0.6, "x");
    let available = std::thread::available_parallelism()?.get() as f64;
    report.note(if stream / raw >= 0.6 {
        format!("Streaming: the disk binds; the node uses {cores:.2} cores and the client {own:.2}.")
    } else if cores >= 0.95 {
        format!(
            "Streaming: the node's CPU binds ({cores:.2} cores); the target's other side, one full core, is reached."
        )
    } else if cores + own >= 0.9 * available {
        format!("Streaming: the machine's CPU binds: node {cores:.2} and client {own:.2} of {available} cores.")
    } else {
        format!("Streaming: neither the disk nor a core binds (node {cores:.2}, client {own:.2}): latency does.")
    });
    drop(node);
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
