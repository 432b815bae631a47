//! One simulation from its seed to its verdict.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use turmoil::{Builder, Sim};

use crate::board::{Board, Clients};
use crate::machine::{Knobs, Machine, set_elapsed, simulate};
use crate::plan::{Plan, open_defect};
use crate::trace::Detail;
use crate::{network, tally, trace};
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
    /// Simulated time.
    pub simulated: Duration,
    /// How much was done, by kind: operations by their outcome, faults, checks.
    pub counts: BTreeMap<&'static str, u64>,
}

impl std::fmt::Display for Report {
    /// `KEY=NUMBER` separated by semicolons.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "trace={};lines={};simulated ms={}", self.trace, self.lines, self.simulated.as_millis())?;
        self.counts.iter().try_for_each(|(kind, count)| write!(f, ";{kind}={count}"))
    }
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
    let producers_expire = open_defect("expiring-producers") && random.random_ratio(1, 3);
    let knobs = Knobs {
        segment_bytes: 1 << random.random_range(12..20),
        disk_ms_max: random.random_range(0..8),
        idle_ms: if random.random() { 1000 } else { 60_000 },
        cache_bytes: if random.random() { 0 } else { 1 << 20 },
        producers_max: if producers_expire { 3 } else { 10_000 },
    };
    let membership_change = random.random_ratio(1, 3);
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
    let pace = Duration::from_millis(random.random_range(8..60));
    let clients =
        Clients { board: board.clone(), servers, writers: 4, pace, producers_expire, groups: !membership_change };
    start(&mut sim, clients);

    let mut plan: Option<Plan> = None;
    let length = Duration::from_secs(random.random_range(8..20));
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
            Plan::new(plan_random.clone(), machines.len(), now, length, membership_change)
        });
        if !plan.step(&mut sim, &machines, &board) {
            trace::note("plan", "everything is mended");
            board.stop.set(true);
            board.healed.set(true);
        }
    }
    ensure!(board.checked.get(), "the simulation ended before its check");
    let victims = plan.map(|plan| plan.victims).unwrap_or_default();
    for (node, machine) in machines.iter().enumerate().filter(|(node, _)| !victims.contains(node)) {
        let aside = machine.disk.files().into_iter().find(|path| path.to_string_lossy().contains("quarantine-"));
        ensure!(aside.is_none(), "{}: nothing was damaged on its disk, but there is {aside:?}", names[node]);
    }
    tally::count("checks.undamaged disks");
    if membership_change {
        tally::count("faults.membership changes");
    }
    let trace = trace::current();
    Ok(Report { trace: trace.hash, lines: trace.lines, simulated: sim.elapsed(), counts: tally::take() })
}

/// Starts the operator, the load and the checker. All are tasks of one host: each host costs time at every tick.
fn start(sim: &mut Sim<'_>, clients: Clients) {
    sim.client("clients", async move {
        let mut tasks = JoinSet::new();
        let busy = || clients.board.busy.set(clients.board.busy.get() + 1);
        tasks.spawn_local(clients.clone().operator());
        for number in 0..clients.writers {
            busy();
            tasks.spawn_local(clients.clone().writer(number));
            busy();
            tasks.spawn_local(clients.clone().reader(number));
        }
        if clients.producers_expire {
            for number in clients.writers..clients.writers + 2 {
                busy();
                tasks.spawn_local(clients.clone().crowd(number));
            }
        }
        for number in 0..4 {
            busy();
            tasks.spawn_local(clients.clone().bookkeeper(number));
        }
        if clients.groups {
            for number in 0..2 {
                busy();
                tasks.spawn_local(clients.clone().committer(number, 0));
            }
        }
        busy();
        tasks.spawn_local(clients.clone().trail_writer());
        busy();
        tasks.spawn_local(clients.clone().trail_reader());
        tasks.spawn_local(clients.checker());
        while let Some(ended) = tasks.join_next().await {
            // A panic of a client goes on in the simulation.
            let ended: Result<()> = ended.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(error.into()),
            });
            ended.map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    });
}

fn add(sim: &mut Sim<'_>, machine: &Machine) {
    let machine = machine.clone();
    sim.host(machine.name.clone(), move || machine.clone().run());
}
