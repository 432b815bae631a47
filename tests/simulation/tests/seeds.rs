//! Simulated clusters, seed by seed, each in a process of its own: what one leaves behind in a process (tables of libraries,
//! counters) would change the next. Needs `--cfg tokio_unstable`; see the crate.
//!
//! - `CHRONICLE_SIMULATION_SEEDS=N` runs N seeds instead of a hundred, `CHRONICLE_SIMULATION_FIRST=N` from seed N on;
//! - `CHRONICLE_SIMULATION_SEED=N` runs that one and prints what happens; `CHRONICLE_SIMULATION_LOG` filters the nodes'
//!   own lines (default `info`).
#![cfg(tokio_unstable)]

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use chronicle_simulation::{Detail, run};

/// Set for the processes that this one starts: `outcomes` or `everything`, what goes into the trace.
const TRACE: &str = "CHRONICLE_SIMULATION_TRACE";
/// What a process that was started says of its seed begins with this.
const REPORT: &str = "report: ";

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}: must be a number")))
}

#[test]
fn clusters_keep_what_they_acknowledged_through_crashes_partitions_and_membership_changes() {
    if let Some(seed) = variable("CHRONICLE_SIMULATION_SEED") {
        return here(seed);
    }
    let first = variable("CHRONICLE_SIMULATION_FIRST").unwrap_or(0);
    let count = variable("CHRONICLE_SIMULATION_SEEDS").unwrap_or(100);
    let seeds: Vec<u64> = (first..first + count).collect();
    let results = in_processes(&seeds, "outcomes");
    let failed: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(
        failed.is_empty(),
        "{} of {count} seeds failed; CHRONICLE_SIMULATION_SEED=N shows one:\n{}",
        failed.len(),
        failed.iter().map(|text| text.as_str()).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn a_seed_repeats_itself_event_for_event_and_another_does_not() {
    // With a membership change and without; the hash is over every event that node, libraries and network trace.
    let reports = in_processes(&[1, 2, 10, 1, 2, 10], "everything");
    let reports: Vec<String> = reports.into_iter().map(|report| report.expect("the seed passes")).collect();
    let (once, again) = reports.split_at(3);
    assert_eq!(once, again, "a seed went another way the second time");
    assert!(once[0] != once[1] && once[1] != once[2], "two seeds went the same way: {once:?}");
}

/// Runs a seed in this process.
fn here(seed: u64) {
    let detail = match std::env::var(TRACE).as_deref() {
        Ok("outcomes") => Detail::Outcomes,
        Ok("everything") => Detail::Everything,
        _ => Detail::Print(std::env::var("CHRONICLE_SIMULATION_LOG").unwrap_or_else(|_| "info".into())),
    };
    match run(seed, detail) {
        Ok(report) => eprintln!("{REPORT}seed {seed}: {report:?}"),
        Err(error) => panic!("{error:#}"),
    }
}

/// Runs each seed in a process of its own, as many at a time as there are processors; what each reports, or why it failed, in
/// the order of the seeds.
fn in_processes(seeds: &[u64], trace: &str) -> Vec<Result<String, String>> {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<(usize, Result<String, String>)> = std::thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed) as usize;
                let Some(seed) = seeds.get(place) else { return results };
                let result = in_process(*seed, trace);
                eprintln!("{}", result.as_ref().unwrap_or_else(|error| error));
                results.push((place, result));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker runs to its end")).collect()
    });
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

fn in_process(seed: u64, trace: &str) -> Result<String, String> {
    let program = std::env::current_exe().expect("the test knows its program");
    let output = Command::new(program)
        .args(["clusters_keep", "--nocapture"])
        .env("CHRONICLE_SIMULATION_SEED", seed.to_string())
        .env(TRACE, trace)
        .output();
    let output = output.expect("the test's program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let report = said.lines().find_map(|line| line.strip_prefix(REPORT));
    match report {
        Some(report) if output.status.success() => Ok(report.to_owned()),
        _ => Err(format!("seed {seed}: {}: {said}", output.status)),
    }
}
