//! Small defects in the real code, each of which the simulation has to find. Needs `--cfg tokio_unstable --cfg chronicle_mutants`;
//! see the crate and `node/log/src/mutant.rs`.
//!
//! A seed counts only if it passes without the mutant. A mutant that survives its seeds is a hole in the simulation: close it,
//! do not raise the number.
//!
//! `CHRONICLE_SIMULATION_MUTANT=NAME` tries that one alone, `CHRONICLE_SIMULATION_FIRST=N` begins with seed N instead of 0.
#![cfg(all(tokio_unstable, chronicle_mutants))]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use chronicle_simulation::processes::{Ended, Job, here_if_asked, run_jobs, variable};

/// A mutant.
struct Mutant {
    /// Its name in the code.
    name: &'static str,
    /// What it does.
    what: &'static str,
    /// Kinds of faults that show it, and how often each is drawn: fewer seeds are enough then.
    plan: &'static str,
    /// It is found within so many seeds.
    seeds: u64,
}

const fn mutant(name: &'static str, what: &'static str, plan: &'static str, seeds: u64) -> Mutant {
    Mutant { name, what, plan, seeds }
}

const POWER: &str = "blackout=6,power-in-write=2,cut-node=2";
const KILLS: &str = "kill=3,blackout=3";
const CUTS: &str = "cut-node=4,cut-pair=2,power=1";
const SLOW: &str = "slow-disk=3,power=2,blackout=2";
const DAMAGE: &str = "rotation=3,damage=1";
const DISKS: &str = "failed-flush=4,blackout=1";

const MUTANTS: &[Mutant] = &[
    mutant("replica-answers-before-flush", "a replica tells the leader that it has what is not flushed", POWER, 20),
    mutant("directory-not-synced", "the name of a new segment is not flushed", POWER, 20),
    mutant("journal-name-not-synced", "the name of a new journal is not flushed", POWER, 20),
    mutant("failed-flush-trusted", "what a failed flush left in the page cache counts as stored", DISKS, 20),
    mutant("damage-cut-as-torn", "damage below the durable mark is cut like a torn write", DAMAGE, 20),
    mutant("mark-never-written", "no durable mark of a busy log reaches the journal", DAMAGE, 20),
    mutant("frame-not-checked", "the checksum of a frame is not checked", DAMAGE, 20),
    mutant("answer-before-commit", "an append is answered before a majority has it", CUTS, 20),
    mutant("sequencer-starts-early", "a new leader accepts appends before it has applied its log", CUTS, 20),
    mutant("reads-above-commit", "readers get what is not committed", CUTS, 20),
    mutant("refusals-do-not-wait", "a refusal leaves before what it was checked against is committed", CUTS, 20),
    mutant("conditions-always-hold", "an append is stored whatever its condition", CUTS, 20),
    mutant("key-versions-stand-still", "the versions of keys do not follow new records", CUTS, 20),
    mutant("duplicates-not-recognised", "a repeated append is stored again", CUTS, 20),
    mutant("truncation-ignored", "a replica keeps entries that its leader does not have", CUTS, 20),
    mutant("duplicate-at-wrong-offset", "a repeated append is told the offset of another", CUTS, 20),
    mutant("producers-not-saved", "a checkpoint forgets the producers", "stop=3,power=2,cut-node=1", 20),
    mutant("sequence-used-twice", "the client numbers records of two epochs alike", CUTS, 20),
];

/// Mutants that survive: holes that are still to be closed. Only `CHRONICLE_SIMULATION_MUTANT` runs one.
const HOLES: &[Mutant] = &[
    mutant("answer-before-flush", "an append is answered once it is written", POWER, 20),
    mutant("recovered-not-flushed", "what a killed process left in the page cache counts as stored", KILLS, 20),
    mutant("vote-before-flush", "a vote is given before it is flushed", POWER, 20),
    mutant("checkpoint-before-log", "a checkpoint is saved before what it covers is flushed", SLOW, 20),
    mutant("filled-before-flush", "a copied log counts as filled before it is flushed", DAMAGE, 20),
    mutant("truncation-keeps-mark", "a truncation does not lower the durable mark", POWER, 20),
    mutant("replica-votes-before-fill", "a replica that has lost entries votes", DAMAGE, 20),
    mutant("end-before-commit", "the high watermark covers what is not committed", CUTS, 20),
    mutant("latest-without-proof", "a former leader tells the end of the log", CUTS, 20),
    mutant("any-lease-serves", "a lease does not expire", CUTS, 20),
    mutant("refusals-need-no-proof", "a former leader refuses and reports what is current", CUTS, 20),
];

#[test]
fn one_seed() {
    here_if_asked();
}

/// What became of a mutant so far.
struct Tried {
    mutant: &'static Mutant,
    seeds: VecDeque<u64>,
    running: u32,
    /// This seed failed; it must pass without the mutant before that counts.
    suspect: Option<(u64, String)>,
    /// Seed, and what the simulation said.
    found: Option<(u64, String)>,
    took: Duration,
}

/// A seed with a plan and without a mutant.
type Control = (&'static str, u64);

/// Mutants and controls.
struct State {
    tried: Vec<Tried>,
    /// To be run.
    wanted: VecDeque<Control>,
    /// Whether each passed; `None`: it runs, or is to be run.
    controls: BTreeMap<Control, Option<bool>>,
}

impl State {
    fn next(&mut self) -> Option<(Option<&'static str>, Job)> {
        if let Some((plan, seed)) = self.wanted.pop_front() {
            return Some((None, Job { seed, mutant: None, plan, everything: false }));
        }
        // One seed of each at a time, as long as there are others: most are found by their first.
        let wants = |of: &&mut Tried| of.found.is_none() && of.suspect.is_none() && !of.seeds.is_empty();
        let next = self.tried.iter_mut().filter(wants).min_by_key(|of| of.running)?;
        next.running += 1;
        let seed = next.seeds.pop_front()?;
        let (mutant, plan) = (Some(next.mutant.name), next.mutant.plan);
        Some((mutant, Job { seed, mutant, plan, everything: false }))
    }

    fn ended(&mut self, mutant: Option<&'static str>, job: &Job, ended: Ended) {
        let control = (job.plan, job.seed);
        match mutant {
            None => {
                if let Err(why) = &ended.result {
                    eprintln!("without a mutant: {}: {why}", job.plan);
                }
                self.controls.insert(control, Some(ended.result.is_ok()));
            }
            Some(name) => {
                let Some(of) = self.tried.iter_mut().find(|of| of.mutant.name == name) else { return };
                of.running -= 1;
                of.took += ended.took;
                if let Err(why) = ended.result
                    && of.found.is_none()
                    && of.suspect.is_none()
                {
                    of.suspect = Some((job.seed, why));
                    self.controls.entry(control).or_insert_with(|| {
                        self.wanted.push_back(control);
                        None
                    });
                }
            }
        }
        for of in &mut self.tried {
            let Some((seed, _)) = &of.suspect else { continue };
            match self.controls.get(&(of.mutant.plan, *seed)) {
                Some(Some(true)) => {
                    of.found = of.suspect.take();
                    eprintln!("found: {}", of.mutant.name);
                }
                Some(Some(false)) => of.suspect = None,
                _ => {}
            }
        }
    }
}

#[test]
fn every_mutant_is_found() {
    let only = std::env::var("CHRONICLE_SIMULATION_MUTANT").ok();
    let first = variable("CHRONICLE_SIMULATION_FIRST").unwrap_or(0);
    let began = Instant::now();
    let all = MUTANTS.iter().chain(HOLES.iter().filter(|_| only.is_some()));
    let chosen = all.filter(|mutant| only.as_ref().is_none_or(|only| only == mutant.name));
    let tried: Vec<Tried> = chosen
        .map(|mutant| Tried {
            mutant,
            seeds: (first..first + mutant.seeds).collect(),
            running: 0,
            suspect: None,
            found: None,
            took: Duration::ZERO,
        })
        .collect();
    assert!(!tried.is_empty(), "there is no mutant {only:?}");
    let state = Mutex::new(State { tried, wanted: VecDeque::new(), controls: BTreeMap::new() });
    let state_of = || state.lock().expect("no worker panicked");
    // A worker that finds nothing to do may stop early: what others still run may ask for more, which they then do themselves.
    run_jobs(|| state_of().next(), |mutant, job, ended| state_of().ended(mutant, job, ended));
    let mut survivors = Vec::new();
    let tried = state.into_inner().expect("no worker panicked").tried;
    for Tried { mutant, found, took, .. } in &tried {
        let (name, took) = (mutant.name, took.as_secs_f64());
        match found {
            Some((seed, why)) => {
                let why: String = why.lines().next().unwrap_or_default().chars().take(160).collect();
                eprintln!("{name:<28} seed {seed:>3} {took:>6.1} s  {why}");
            }
            None => {
                eprintln!("{name:<28} survived {:>3} seeds, {took:>6.1} s", mutant.seeds);
                survivors.push(format!("{name}: {}", mutant.what));
            }
        }
    }
    eprintln!("{} mutants in {} s", tried.len(), began.elapsed().as_secs());
    assert!(survivors.is_empty(), "these survive:\n{}", survivors.join("\n"));
}
