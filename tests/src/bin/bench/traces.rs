//! Measures the cost of traces while nothing is sampled: a node with traces configured at a ratio of 0, compared with a
//! node without traces.
//!
//! Compares the processor time that the nodes spend per record or megabyte. The throughput depends on the disk, which
//! varies by more than the cost of traces. Both nodes run all the time, and each round measures both, in an order that
//! alternates. The median of the ratios, pair by pair, is robust against a machine that is busy for a while.

use std::time::Duration;

use anyhow::Result;
use chronicle_tests::node::{Setup, free_port};
use tokio::runtime::Runtime;

use super::Bench;
use super::load::{Place, Way, producers, streaming};
use super::probe;
use super::report::{Report, Rule};

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("traces")?;
    let without = Setup::new().data_dir(dir.join("without")).start()?;
    // The port is closed, and nothing is sent.
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let with = Setup::new()
        .data_dir(dir.join("with"))
        .set("telemetry.traces.endpoint", endpoint)
        .set("telemetry.traces.sampling-ratio", 0)
        .start()?;
    let runtime = Runtime::new()?;
    let span = Duration::from_millis(bench.size(3000, 1500));
    let place = |with_traces: bool| {
        let node = if with_traces { &with } else { &without };
        Place { address: node.address(), topic: "default" }
    };
    // Microseconds of the node's processor time for each record, or each megabyte.
    let measure = |name: &'static str, with_traces: bool| -> Result<f64> {
        let pid = if with_traces { with.pid() } else { without.pid() };
        let before = probe::cpu_seconds(pid)?;
        let taken = if name == "64 producers" {
            runtime.block_on(producers(place(with_traces), span, Way::Stream))? * span.as_secs_f64()
        } else {
            // Shorter: the records of all rounds must fit on the disk.
            runtime.block_on(streaming(place(with_traces), span / 3))?.0 / 1e6
        };
        Ok((probe::cpu_seconds(pid)? - before) * 1e6 / taken)
    };
    for (name, unit) in [("64 producers", "us/record"), ("one batched stream", "us/MB")] {
        // The first use of a partition opens it.
        for with_traces in [false, true] {
            measure(name, with_traces)?;
        }
        let (mut plain, mut traced, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..bench.size(16, 6) {
            let first_with = round % 2 == 0;
            let first = measure(name, first_with)?;
            let second = measure(name, !first_with)?;
            let (on, off) = if first_with { (first, second) } else { (second, first) };
            plain.push(off);
            traced.push(on);
            ratios.push(on / off);
        }
        report.figure(format!("node: {name}, processor time, no traces"), unit, plain);
        report.figure(format!("node: {name}, processor time, traces with a sampling ratio of 0"), unit, traced);
        let ratio = report.figure(format!("node: {name}, with traces / without, round by round"), "x", ratios);
        report.target(
            format!("node: {name}, processor time unsampled / without traces"),
            ratio,
            Rule::AtMost,
            1.02,
            "x",
        );
    }
    drop((with, without));
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
