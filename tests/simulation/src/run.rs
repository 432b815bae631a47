//! One simulation from its seed to its verdict.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use turmoil::{Builder, Sim};

use crate::load::{Board, Clients};
use crate::machine::{Knobs, Machine, set_elapsed, simulate};
use crate::plan::Plan;
use crate::trace::Detail;
use crate::{network, trace};
use chronicle_log::simulated;

/// Longest simulated time.
const LENGTH_MAX: Duration = Duration::from_secs(400);

/// What a simulation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that was noted, in order.
    pub trace: u64,
    /// Lines that were noted.
    pub lines: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records stored at the end.
    pub stored: u64,
    /// Machines that lost power.
    pub crashes: u32,
    /// Times that lines were cut.
    pub cuts: u32,
    /// A node joined and another left.
    pub membership_change: bool,
    /// Simulated time.
    pub simulated: Duration,
}

/// Runs the simulation of a seed, on a thread of its own.
///
/// # Errors
/// What clients were told and what is stored contradict one another; the cluster does not recover; a panic.
pub fn run(seed: u64, detail: Detail) -> Result<Report> {
    let dispatch = trace::dispatch(&detail);
    let thread = std::thread::Builder::new().name(format!("seed-{seed}")).spawn(move || {
        simulated::seed_thread(seed);
        let _guard = trace::begin(&detail, &dispatch);
        network::begin();
        simulate();
        simulation(seed)
    })?;
    match thread.join() {
        Ok(result) => result.with_context(|| format!("seed {seed}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            bail!("seed {seed}: panic: {}", text.unwrap_or_default());
        }
    }
}

fn simulation(seed: u64) -> Result<Report> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut sim = Builder::new()
        .rng_seed(random.random())
        .simulation_duration(LENGTH_MAX)
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(random.random_range(2..20)))
        .tcp_capacity(1 << 16)
        .enable_random_order()
        .build();
    let knobs = Knobs {
        segment_bytes: 1 << random.random_range(12..20),
        disk_ms_max: random.random_range(0..8),
        idle_ms: if random.random() { 1000 } else { 60_000 },
    };
    let membership_change = random.random_ratio(1, 2);
    let founders = ["n1", "n2", "n3"].map(String::from);
    let mut names = founders.to_vec();
    if membership_change {
        names.push("n4".into());
    }
    let mut machines = Vec::new();
    for name in &names {
        // One that joins an existing cluster is no founder.
        let machine = Machine::new(name, &founders, 3, knobs)?;
        machines.push(machine);
    }
    for machine in &machines[..3] {
        add(&mut sim, machine);
    }
    let board = Rc::new(Board::default());
    let servers = founders.iter().map(|name| format!("{name}:{}", network::PORT)).collect::<Vec<_>>().join(",");
    let pace = Duration::from_millis(random.random_range(5..40));
    let clients = Clients { board: board.clone(), servers, writers: 4, pace };
    sim.client("operator", boxed(clients.clone().operator()));
    for number in 0..clients.writers {
        sim.client(format!("w{number}"), boxed(clients.clone().writer(number)));
        sim.client(format!("r{number}"), boxed(clients.clone().reader(number)));
    }
    sim.client("checker", boxed(clients.clone().checker()));

    let mut plan: Option<Plan> = None;
    let length = Duration::from_secs(random.random_range(6..15));
    let plan_random = StdRng::seed_from_u64(random.random());
    loop {
        let finished = sim.step().map_err(|error| anyhow::anyhow!("{error}"))?;
        set_elapsed(sim.elapsed());
        if finished {
            break;
        }
        if !board.ready.get() || board.healed.get() {
            continue;
        }
        let now = sim.elapsed();
        let plan = plan.get_or_insert_with(|| {
            if let Some(late) = machines.get(3) {
                add(&mut sim, late);
            }
            Plan::new(plan_random.clone(), now, length, membership_change)
        });
        if !plan.step(&mut sim, &machines, &board) {
            trace::note("plan", "everything is mended");
            board.stop.set(true);
            board.healed.set(true);
        }
    }
    ensure!(board.checked.get(), "the simulation ended before its check");
    let trace = trace::current();
    let (crashes, cuts) = plan.map_or((0, 0), |plan| (plan.crashes, plan.cuts));
    Ok(Report {
        trace: trace.hash,
        lines: trace.lines,
        acknowledged: board.acknowledged.get(),
        stored: board.stored.get(),
        crashes,
        cuts,
        membership_change,
        simulated: sim.elapsed(),
    })
}

fn add(sim: &mut Sim<'_>, machine: &Machine) {
    let machine = machine.clone();
    sim.host(machine.name.clone(), move || machine.clone().run());
}

async fn boxed(work: impl Future<Output = Result<()>>) -> turmoil::Result {
    work.await.map_err(|error| format!("{error:#}").into())
}
