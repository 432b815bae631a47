//! Compares three nodes with one, in alternating rounds of the same load.

use std::time::Duration;

use anyhow::Result;
use chronicle_tests::node::Setup;
use tokio::runtime::Runtime;

use super::super::Bench;
use super::super::disk::append_and_sync;
use super::super::engine::median;
use super::super::load::{Place, RECORD_BYTES, Way, producers, streaming, unbatched, unbatched_stream};
use super::super::report::{Report, Rule};
use super::{NODES, place, with_topic};

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("replicas")?;
    let runtime = Runtime::new()?;
    let span = Duration::from_millis(bench.size(2000, 1000));
    let samples = bench.size(200, 100);
    let single = Setup::new().data_dir(dir.join("single")).start()?;
    let single = (Place { address: single.address(), topic: "default" }, single);
    let cluster = runtime.block_on(with_topic(&dir))?;
    let three = runtime.block_on(place(&cluster))?;
    let mut raw = Vec::new();
    let mut figures = [const { [const { Vec::new() }; 5] }; 2];
    for _ in 0..bench.size(9, 3) {
        raw.push(median(append_and_sync(&dir.join("single.raw"), RECORD_BYTES, samples)?) * 1e6);
        for (place, figures) in [single.0, three].into_iter().zip(&mut figures) {
            figures[0].push(median(runtime.block_on(unbatched(place, samples))?) * 1e6);
            figures[1].push(median(runtime.block_on(unbatched_stream(place, samples))?) * 1e6);
            figures[2].push(runtime.block_on(producers(place, span, Way::Calls))?);
            figures[3].push(runtime.block_on(producers(place, span, Way::Stream))?);
            let (bytes, seconds) = runtime.block_on(streaming(place, span))?;
            figures[4].push(bytes / RECORD_BYTES as f64 / seconds);
        }
    }
    let raw = report.figure("disk: write + fdatasync, 1 KiB, p50 (beside the cluster)", "us", raw);
    let mut medians = Vec::new();
    for (who, figures) in ["one node", "three nodes"].into_iter().zip(figures) {
        let [call, stream, calls, streams, batched] = figures;
        medians.push([
            report.figure(format!("{who}: one producer, a call per record, p50"), "us", call),
            report.figure(format!("{who}: one producer on a stream, p50"), "us", stream),
            report.figure(format!("{who}: 64 producers, a call per record"), "records/s", calls),
            report.figure(format!("{who}: 64 producers, a stream each, one in flight"), "records/s", streams),
            report.figure(format!("{who}: one stream of 512 KiB requests of 1 KiB records"), "records/s", batched),
        ]);
    }
    let (one, three) = (medians[0], medians[1]);
    let share = NODES as f64;
    let limit = 2.0 * raw + 500.0;
    report.target("three nodes: p50 of one append by a call", three[0], Rule::AtMost, limit, "us");
    report.target("three nodes: p50 of one append on a stream", three[1], Rule::AtMost, limit, "us");
    for (index, what) in [(2, "64 producers with calls"), (3, "64 producers on streams"), (4, "one batched stream")] {
        let ratio = three[index] / (one[index] / share);
        report.target(format!("three nodes: {what} / a third of one node's"), ratio, Rule::AtLeast, 0.6, "x");
    }
    cluster.finish()?;
    drop(single);
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
