//! Simulated clusters, seed by seed. Needs `--cfg tokio_unstable`; see the crate.
//!
//! - `CHRONICLE_SIMULATION_SEEDS=N` runs N seeds instead of a hundred, `CHRONICLE_SIMULATION_FIRST=N` from seed N on;
//! - `CHRONICLE_SIMULATION_SEED=N` runs that one in `one_seed` and prints what happens; `CHRONICLE_SIMULATION_LOG` filters the
//!   nodes' own lines (default `info`);
//! - `CHRONICLE_SIMULATION_PLAN=KIND=WEIGHT,...` draws only these kinds of faults.
#![cfg(tokio_unstable)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chronicle_simulation::processes::{Job, here_if_asked, run_all, run_jobs, variable};

fn job(seed: u64) -> Job {
    Job { seed, mutant: None, plan: "", everything: false }
}

#[test]
fn one_seed() {
    here_if_asked();
}

#[test]
fn clusters_keep_what_they_acknowledged_through_all_faults() {
    let first = variable("CHRONICLE_SIMULATION_FIRST").unwrap_or(0);
    let count = variable("CHRONICLE_SIMULATION_SEEDS").unwrap_or(100);
    let began = Instant::now();
    let mut seeds = first..first + count;
    let mut failed = Vec::new();
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    run_jobs(
        || seeds.next().map(|seed| (seed, job(seed))),
        |seed, _, ended| match ended.result {
            Ok(counts) => counts.into_iter().for_each(|(kind, count)| {
                let sum = sums.entry(kind).or_default();
                *sum = sum.wrapping_add(count);
            }),
            Err(error) => {
                eprintln!("{error}");
                failed.push((seed, error));
            }
        },
    );
    let wall = began.elapsed();
    let simulated = Duration::from_millis(sums.remove("simulated ms").unwrap_or_default());
    sums.remove("trace");
    eprintln!(
        "{count} seeds, {} simulated seconds in {} s: {:.0} in a minute",
        simulated.as_secs(),
        wall.as_secs(),
        simulated.as_secs_f64() / wall.as_secs_f64() * 60.0
    );
    sums.iter().for_each(|(kind, count)| eprintln!("  {kind}: {count}"));
    failed.sort();
    assert!(
        failed.is_empty(),
        "{} of {count} seeds failed; CHRONICLE_SIMULATION_SEED=N shows one:\n{}",
        failed.len(),
        failed.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn a_seed_repeats_itself_event_for_event_and_another_does_not() {
    // With a membership change and without; the hash is over every event that node, libraries and network trace.
    let jobs = [1, 2, 10, 1, 2, 10].map(|seed| Job { everything: true, ..job(seed) });
    let counts: Vec<_> = run_all(&jobs).into_iter().map(|ended| ended.result.expect("the seed passes")).collect();
    let (once, again) = counts.split_at(3);
    assert_eq!(once, again, "a seed went another way the second time");
    assert!(once[0] != once[1] && once[1] != once[2], "two seeds went the same way: {once:?}");
}
