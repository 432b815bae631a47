//! What traces cost while nothing is sampled: a node that has them configured with a ratio of 0, beside one that has not.
//!
//! Both run all the time, and each round measures both, in an order that alternates. What is compared are the rounds, pair by
//! pair: the median of their ratios holds against a machine that is busy for a while.

use std::time::Duration;

use anyhow::Result;
use chronicle_tests::node::{Setup, free_port};
use tokio::runtime::Runtime;

use super::Bench;
use super::load::{Place, Way, producers, streaming};
use super::report::{Report, Rule};

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("traces")?;
    let without = Setup::new().data_dir(dir.join("without")).start()?;
    // Nobody listens there, and nothing is sent.
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
    let measure = |name: &'static str, with_traces: bool| -> Result<f64> {
        if name == "64 producers" {
            return runtime.block_on(producers(place(with_traces), span, Way::Stream));
        }
        let (bytes, seconds) = runtime.block_on(streaming(place(with_traces), span))?;
        Ok(bytes / 1e6 / seconds)
    };
    for (name, unit) in [("64 producers", "records/s"), ("one batched stream", "MB/s")] {
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
        report.figure(format!("node: {name}, no traces"), unit, plain);
        report.figure(format!("node: {name}, traces with a sampling ratio of 0"), unit, traced);
        let ratio = report.figure(format!("node: {name}, with traces / without, round by round"), "x", ratios);
        report.target(format!("node: {name}, unsampled / without traces"), ratio, Rule::AtLeast, 0.98, "x");
    }
    drop((with, without));
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
