//! What is broken, and when: drawn from the seed while the simulation runs, and mended again.
//!
//! The plan keeps within what a cluster of three replicas survives: files are damaged on one machine at most, in what marks cover
//! (`damage.rs`), and no disk forgets what it had flushed. [`open_defect`] names what the product is to survive and does not yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chronicle_log::disk::{DiskOperation, Fault, FaultRule, MemoryDisk};
use rand::Rng;
use rand::rngs::StdRng;
use turmoil::Sim;

use crate::board::Board;
use crate::damage::damage;
use crate::machine::Machine;
use crate::network::{self, Connection, Fate};
use crate::tally::count;
use crate::trace::note;

/// Attacks that the product does not survive yet, by name. Add a name here when its defect is mended; a comma-separated list in
/// `CHRONICLE_SIMULATION_OPEN` turns them on for one run.
///
/// - `damaged-tail`: damage to the last acknowledged entries of one replica, which no mark covers;
/// - `rolled-back-disk`: a machine comes back with its disk as it was some seconds ago;
/// - `two-damaged`: damage on two of three machines, at different places;
/// - `damaged-journal`: damage to the journal of votes and marks;
/// - `retention-by-clock`: a wall clock that is hours ahead, where retention by age may not delete anything;
/// - `restart-after-failed-flush`: a process whose flush failed is started again, reads from the page cache what the disk never
///   got, and takes it for stored because a second flush succeeds;
/// - `damage-beside-filling`: damage to logs whose beginning retention has deleted;
/// - `expiring-producers`: nodes drop the state of producers that repeat a request.
const MENDED: &[&str] = &[];

/// Whether an attack of [`MENDED`]'s list is made.
pub(crate) fn open_defect(name: &str) -> bool {
    let listed = |list: &str| list.split(',').any(|entry| entry == name);
    MENDED.contains(&name) || std::env::var("CHRONICLE_SIMULATION_OPEN").is_ok_and(|list| listed(&list))
}

/// Marks of what a machine wrote are in its journal by then.
const SETTLED: Duration = Duration::from_secs(4);
/// Between two copies of a victim's disk.
const COPY: Duration = Duration::from_secs(1);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A machine loses power.
    Power,
    /// A process is killed; what it wrote stays in the page cache.
    Kill,
    /// A machine loses power in the middle of its writes.
    PowerInWrite,
    /// Some or all machines lose power at once, right after an acknowledgement.
    Blackout,
    /// A process is told to stop, and started again.
    Stop,
    /// Two machines do not hear one another, or one of them does not, or late.
    CutPair,
    /// One machine is cut off in that way.
    CutNode,
    /// One connection between two nodes stalls, or breaks.
    Line,
    /// Heartbeats, or raft's messages, stall to everyone; then the machine is cut off.
    Lines,
    /// The rounds of a disk take long.
    SlowDisk,
    /// A disk does nothing for a while.
    HangingDisk,
    /// Flushes fail.
    FailedFlush,
    /// A volume is full.
    FullDisk,
    /// A wall clock jumps.
    Clock,
    /// The victim loses power and finds damage.
    Damage,
    /// A minority that knows less comes back together with a machine that has lost something.
    Rotation,
}

/// Each kind, its name in `CHRONICLE_SIMULATION_PLAN`, and how often it is drawn, relative to the others.
const KINDS: [(Kind, &str, u32); 16] = [
    (Kind::Power, "power", 5),
    (Kind::Kill, "kill", 4),
    (Kind::PowerInWrite, "power-in-write", 5),
    (Kind::Blackout, "blackout", 4),
    (Kind::Stop, "stop", 3),
    (Kind::CutPair, "cut-pair", 4),
    (Kind::CutNode, "cut-node", 4),
    (Kind::Line, "line", 5),
    (Kind::Lines, "lines", 2),
    (Kind::SlowDisk, "slow-disk", 2),
    (Kind::HangingDisk, "hanging-disk", 2),
    (Kind::FailedFlush, "failed-flush", 3),
    (Kind::FullDisk, "full-disk", 2),
    (Kind::Clock, "clock", 2),
    (Kind::Damage, "damage", 3),
    (Kind::Rotation, "rotation", 3),
];

/// How often each kind is drawn: `KINDS`, or `NAME=WEIGHT,...` of `CHRONICLE_SIMULATION_PLAN`, which leaves out all others.
fn weights() -> Vec<(Kind, u32)> {
    let Ok(text) = std::env::var("CHRONICLE_SIMULATION_PLAN") else {
        return KINDS.iter().map(|(kind, _, weight)| (*kind, *weight)).collect();
    };
    let weight = |part: &str| {
        let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
        let found = KINDS.iter().find(|(_, of, _)| *of == name);
        let (kind, _, _) = found.unwrap_or_else(|| panic!("CHRONICLE_SIMULATION_PLAN: {name:?}: no such kind"));
        (*kind, weight.parse().unwrap_or_else(|_| panic!("CHRONICLE_SIMULATION_PLAN: {part:?}: NAME=WEIGHT")))
    };
    text.split(',').map(weight).collect()
}

type Pairs = Vec<(String, String)>;

/// Something that is due at a time.
enum Step {
    /// A machine loses power, and finds its files damaged then.
    Crash(usize, bool),
    /// Its power comes back.
    Start(usize),
    /// The process that was told to stop is started again.
    StartStopped(usize),
    /// Lines are cut, in one of three ways.
    Cut(Pairs, u32),
    /// They are well again.
    Mend(Pairs),
    /// This connection is well again.
    Connect(Arc<Connection>),
    /// A machine's disk and clock are well again.
    Heal(usize),
    /// The machine is free for other faults.
    Free(usize),
}

/// Power that is about to fail.
struct Blackout {
    /// For these machines.
    nodes: Vec<usize>,
    /// Once more than this was acknowledged.
    acknowledged: u64,
    /// At this time at the latest.
    at: Duration,
}

/// Longest wait of a blackout for an acknowledgement.
const BLACKOUT_WAIT: Duration = Duration::from_secs(3);

/// The faults of one simulation.
pub(crate) struct Plan {
    random: StdRng,
    weights: Vec<(Kind, u32)>,
    /// When the next thing breaks.
    next: Duration,
    /// When nothing breaks any more.
    end: Duration,
    agenda: Vec<(Duration, Step)>,
    /// Machines that something is being done to.
    busy: Vec<bool>,
    /// One node joins late and another leaves.
    change: Option<Duration>,
    /// Machines that lose power as soon as something is acknowledged.
    blackout: Option<Blackout>,
    /// The machines whose files may be damaged.
    pub(crate) victims: Vec<usize>,
    /// Copies of the disks of the victims, oldest first, since their processes started.
    copies: Vec<VecDeque<(Duration, MemoryDisk)>>,
}

impl Plan {
    /// Begins at `now` and lasts for `length`. `change`: a node leaves on the way.
    pub(crate) fn new(mut random: StdRng, machines: usize, now: Duration, length: Duration, change: bool) -> Self {
        let first = now + ms(random.random_range(200..2000));
        let at = now + length.mul_f64(random.random_range(0.1..0.6));
        let change = change.then_some(at);
        let victim = random.random_range(0..3);
        let mut victims = vec![victim];
        if open_defect("two-damaged") {
            victims.push((victim + 1) % 3);
        }
        Self {
            random,
            weights: weights(),
            next: first,
            end: now + length,
            agenda: Vec::new(),
            busy: vec![false; machines],
            change,
            blackout: None,
            victims,
            copies: vec![VecDeque::new(); machines],
        }
    }

    /// Does what is due. False: everything is mended and nothing will break any more.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, machines: &[Machine], board: &Board) -> bool {
        let now = sim.elapsed();
        while let Some(at) = self.agenda.iter().position(|(due, _)| *due <= now) {
            let (_, step) = self.agenda.remove(at);
            self.act(sim, machines, step, now);
        }
        if self.change.is_some_and(|at| at <= now) {
            self.change = None;
            // A founder leaves; the one that came later takes its place.
            let node = &machines[self.random.random_range(0..machines.len() - 1)].name;
            note("plan", &format!("{node} is to leave"));
            board.leaving.replace(Some(node.clone()));
        }
        self.copy(sim, machines, now);
        self.black_out(sim, machines, board, now);
        if now >= self.end {
            let over = self.agenda.is_empty();
            if over {
                machines.iter().for_each(Machine::heal);
            }
            return !over;
        }
        if now >= self.next {
            self.next = now + ms(self.random.random_range(150..1500));
            self.spoil(sim, machines, board, now);
        }
        true
    }

    fn later(&mut self, now: Duration, least_ms: u64, most_ms: u64, step: Step) -> Duration {
        let at = now + ms(self.random.random_range(least_ms..most_ms));
        self.agenda.push((at, step));
        at
    }

    fn draw(&mut self) -> Kind {
        let all: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.random_range(0..all.max(1));
        for (kind, weight) in &self.weights {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return *kind,
            }
        }
        Kind::Power
    }

    /// Keeps copies of what the victims' disks hold while their processes run.
    fn copy(&mut self, sim: &mut Sim<'_>, machines: &[Machine], now: Duration) {
        for node in self.victims.clone() {
            let copies = &mut self.copies[node];
            if !sim.is_host_running(machines[node].name.as_str()) {
                continue;
            }
            if copies.back().is_none_or(|(at, _)| *at + COPY <= now) {
                copies.push_back((now, machines[node].disk.fork()));
            }
            while copies.get(1).is_some_and(|(at, _)| *at + SETTLED <= now) {
                copies.pop_front();
            }
        }
    }

    /// The copy of a victim's disk from before everything that may be on no mark yet.
    fn settled(&self, node: usize, now: Duration) -> Option<MemoryDisk> {
        let (_, copy) = self.copies[node].front().filter(|(at, _)| *at + SETTLED <= now)?;
        Some(copy.clone())
    }

    fn black_out(&mut self, sim: &mut Sim<'_>, machines: &[Machine], board: &Board, now: Duration) {
        let Some(blackout) = &mut self.blackout else { return };
        if board.acknowledged.get() > blackout.acknowledged {
            blackout.acknowledged = u64::MAX;
            blackout.at = now + ms(self.random.random_range(0..4));
        }
        if blackout.at > now && now < self.end {
            return;
        }
        let nodes = std::mem::take(&mut blackout.nodes);
        self.blackout = None;
        note("plan", &format!("power fails for {}", nodes.len()));
        // Every second time all disks lose alike: nothing of what was not flushed survives anywhere.
        let seed = self.random.random_bool(0.5).then(|| self.random.random());
        for node in nodes {
            if sim.is_host_running(machines[node].name.as_str()) {
                self.power_off(sim, machines, node, seed);
            }
            self.later(now, 20, 1500, Step::Start(node));
        }
    }

    fn power_off(&mut self, sim: &mut Sim<'_>, machines: &[Machine], node: usize, seed: Option<u64>) {
        let machine = &machines[node];
        note("plan", &format!("{} loses power", machine.name));
        count("faults.power lost");
        machine.disk.crash(seed.unwrap_or_else(|| self.random.random()));
        sim.crash(machine.name.as_str());
    }

    fn spoil(&mut self, sim: &mut Sim<'_>, machines: &[Machine], board: &Board, now: Duration) {
        let kind = self.draw();
        let node = match kind {
            Kind::Damage => self.victims[self.random.random_range(0..self.victims.len())],
            _ => self.random.random_range(0..machines.len()),
        };
        let name = machines[node].name.clone();
        let free = !self.busy[node] && sim.is_host_running(name.as_str());
        match kind {
            Kind::Power if free => {
                self.busy[node] = true;
                self.act(sim, machines, Step::Crash(node, false), now);
                self.later(now, 50, 3000, Step::Start(node));
            }
            Kind::Kill if free => {
                self.busy[node] = true;
                note("plan", &format!("{name} is killed"));
                count("faults.processes killed");
                sim.crash(name.as_str());
                self.later(now, 50, 2000, Step::Start(node));
            }
            Kind::PowerInWrite if free => {
                self.busy[node] = true;
                let change = self.random.random_range(1..60);
                note("plan", &format!("power of {name} fails at change {change} of its disk"));
                count("faults.power lost in a write");
                machines[node].disk.crash_at(change, self.random.random());
                let at = self.later(now, 20, 300, Step::Crash(node, false));
                self.later(at, 50, 3000, Step::Start(node));
            }
            Kind::Blackout if self.blackout.is_none() => {
                let mut nodes: Vec<usize> = (0..machines.len()).filter(|node| !self.busy[*node]).collect();
                if self.random.random_ratio(1, 3) {
                    nodes.truncate(2);
                }
                nodes.iter().for_each(|node| self.busy[*node] = true);
                count("faults.blackouts");
                let acknowledged = board.acknowledged.get();
                self.blackout = Some(Blackout { nodes, acknowledged, at: now + BLACKOUT_WAIT });
            }
            Kind::Stop if free => {
                self.busy[node] = true;
                note("plan", &format!("{name} is told to stop"));
                count("faults.processes stopped");
                machines[node].stop();
                self.later(now, 500, 6000, Step::StartStopped(node));
            }
            Kind::CutPair => {
                let other = &machines[(node + self.random.random_range(1..machines.len())) % machines.len()].name;
                let (pairs, how) = (vec![(name, other.clone())], self.random.random_range(0..3));
                self.act(sim, machines, Step::Cut(pairs.clone(), how), now);
                self.later(now, 100, 4000, Step::Mend(pairs));
            }
            Kind::CutNode => {
                let (pairs, how) = (pairs_of(machines, node), self.random.random_range(0..3));
                self.act(sim, machines, Step::Cut(pairs.clone(), how), now);
                self.later(now, 100, 4000, Step::Mend(pairs));
            }
            Kind::Line => {
                let all = network::connections();
                if all.is_empty() {
                    return;
                }
                let connection = all[self.random.random_range(0..all.len())].clone();
                let fate = [Fate::Deaf, Fate::Mute, Fate::Silent, Fate::Reset][self.random.random_range(0..4)];
                note("plan", &format!("a connection of {} is {fate:?}", connection.ends()));
                count("faults.connections");
                connection.set(fate);
                if fate != Fate::Reset {
                    self.later(now, 100, 4000, Step::Connect(connection));
                }
            }
            Kind::Lines => self.stall_some(machines, node, now),
            Kind::SlowDisk if free => {
                self.busy[node] = true;
                let more = self.random.random_range(20..400);
                note("plan", &format!("the disk of {name} takes {more} ms longer"));
                count("faults.slow disks");
                machines[node].pace.slow_ms.store(more, Ordering::Relaxed);
                self.copies[node].clear();
                self.later(now, 500, 3000, Step::Heal(node));
            }
            Kind::HangingDisk if free => {
                self.busy[node] = true;
                note("plan", &format!("the disk of {name} hangs"));
                count("faults.hanging disks");
                machines[node].pace.hangs.store(true, Ordering::Relaxed);
                self.copies[node].clear();
                self.later(now, 200, 4000, Step::Heal(node));
            }
            Kind::FailedFlush if free => {
                self.busy[node] = true;
                let flushes = self.random.random_range(1..4);
                note("plan", &format!("{flushes} flushes of {name} fail"));
                count("faults.failed flushes");
                machines[node].disk.fail_syncs(flushes);
                self.copies[node].clear();
                // Soon the power goes too, before a supervisor starts the process again: what the failed flush lost is gone then.
                let at = match open_defect("restart-after-failed-flush") {
                    true => self.later(now, 300, 3000, Step::Crash(node, false)),
                    false => self.later(now, 50, 450, Step::Crash(node, false)),
                };
                self.later(at, 50, 2000, Step::Start(node));
            }
            Kind::FullDisk if free => {
                self.busy[node] = true;
                note("plan", &format!("the volume of {name} is full"));
                count("faults.full volumes");
                let faults = machines[node].faults.borrow();
                for operation in [DiskOperation::Write, DiskOperation::Create] {
                    faults.add(FaultRule::new(operation, Fault::NO_SPACE));
                }
                drop(faults);
                self.copies[node].clear();
                self.later(now, 200, 2500, Step::Heal(node));
            }
            Kind::Clock if free => {
                self.busy[node] = true;
                let hours = if open_defect("retention-by-clock") { 12 } else { 0 };
                let ahead = self.random.random_range(-600_000..600_000 + hours * 3_600_000);
                note("plan", &format!("the clock of {name} is {ahead} ms ahead"));
                count("faults.clocks");
                machines[node].ahead.store(ahead, Ordering::Relaxed);
                self.later(now, 500, 5000, Step::Heal(node));
            }
            Kind::Damage if free && self.settled(node, now).is_some() => {
                self.busy[node] = true;
                self.act(sim, machines, Step::Crash(node, true), now);
                self.later(now, 50, 2000, Step::Start(node));
            }
            Kind::Rotation => self.rotate(machines, now),
            _ => {}
        }
    }

    /// One of several connections between this node and each other one stalls; a little later the node is cut off. Other nodes
    /// take it for dead while it still has answers, or answer it when they take it for dead.
    fn stall_some(&mut self, machines: &[Machine], node: usize, now: Duration) {
        let name = &machines[node].name;
        let all = network::connections();
        let of_node = all.into_iter().filter(|connection| connection.ends().split(" to ").any(|end| end == name));
        let ends = now + ms(self.random.random_range(800..3000));
        for connection in of_node {
            if self.random.random_bool(0.5) {
                connection.set(Fate::Silent);
                self.agenda.push((ends, Step::Connect(connection)));
            }
        }
        note("plan", &format!("half of the connections of {name} are silent"));
        count("faults.connections");
        let cut = now + ms(self.random.random_range(450..1200));
        let pairs = pairs_of(machines, node);
        self.agenda.push((cut, Step::Cut(pairs.clone(), 0)));
        self.later(cut, 300, 2500, Step::Mend(pairs));
    }

    /// B is cut off while A and C go on. Then A loses something and C is gone; A and B come together, and may serve only if
    /// they have everything that A and C acknowledged.
    fn rotate(&mut self, machines: &[Machine], now: Duration) {
        let a = self.victims[0];
        let (b, c) = match self.random.random() {
            true => ((a + 1) % 3, (a + 2) % 3),
            false => ((a + 2) % 3, (a + 1) % 3),
        };
        if machines.len() != 3 || self.busy.iter().any(|busy| *busy) || self.settled(a, now).is_none() {
            return;
        }
        count("faults.rotations");
        note("plan", &format!("{} falls behind, {} loses something, {} is gone", b + 1, a + 1, c + 1));
        self.busy.fill(true);
        let pairs = pairs_of(machines, b);
        let damaged = self.random.random_ratio(3, 4);
        self.agenda.push((now, Step::Cut(pairs.clone(), 0)));
        // Longer than it takes until marks cover what only A and C have.
        let lost = self.later(now, 5000, 7000, Step::Crash(a, damaged));
        self.agenda.push((lost + ms(1), Step::Crash(c, false)));
        let back = self.later(lost, 50, 400, Step::Start(a));
        self.later(lost, 20, 400, Step::Mend(pairs));
        self.later(back, 1500, 4000, Step::Start(c));
        self.later(back, 4000, 4500, Step::Free(b));
    }

    fn act(&mut self, sim: &mut Sim<'_>, machines: &[Machine], step: Step, now: Duration) {
        match step {
            Step::Crash(node, damaged) => {
                if sim.is_host_running(machines[node].name.as_str()) {
                    self.power_off(sim, machines, node, None);
                }
                machines[node].heal();
                if damaged {
                    self.damage(machines, node, now);
                }
                self.copies[node].clear();
            }
            Step::Start(node) => {
                note("plan", &format!("{} has power again", machines[node].name));
                machines[node].heal();
                self.copies[node].clear();
                self.busy[node] = false;
                sim.bounce(machines[node].name.as_str());
            }
            Step::StartStopped(node) => {
                let name = machines[node].name.as_str();
                if sim.is_host_running(name) {
                    self.agenda.push((now + ms(100), Step::StartStopped(node)));
                } else {
                    note("plan", &format!("{name} is started again"));
                    self.copies[node].clear();
                    self.busy[node] = false;
                    sim.bounce(name);
                }
            }
            Step::Cut(pairs, how) => {
                let what = ["nothing arrives", "everything is late", "one way only"][how as usize];
                note("plan", &format!("between {pairs:?} {what}"));
                count(["faults.cuts", "faults.delays", "faults.cuts of one way"][how as usize]);
                for (a, b) in &pairs {
                    network::cut(a, b);
                    match how {
                        0 => sim.partition(a.as_str(), b.as_str()),
                        1 => sim.hold(a.as_str(), b.as_str()),
                        _ => sim.partition_oneway(a.as_str(), b.as_str()),
                    }
                }
            }
            Step::Mend(pairs) => {
                note("plan", &format!("between {pairs:?} all is well"));
                for (a, b) in &pairs {
                    if network::mend(a, b) {
                        sim.release(a.as_str(), b.as_str());
                    }
                }
            }
            Step::Connect(connection) => {
                note("plan", &format!("a connection of {} is well", connection.ends()));
                connection.set(Fate::Open);
            }
            Step::Heal(node) => {
                note("plan", &format!("disk and clock of {} are well", machines[node].name));
                machines[node].heal();
                self.copies[node].clear();
                self.busy[node] = false;
            }
            Step::Free(node) => self.busy[node] = false,
        }
    }

    fn damage(&mut self, machines: &[Machine], node: usize, now: Duration) {
        let Some(old) = self.settled(node, now) else { return };
        let disk = &machines[node].disk;
        if open_defect("rolled-back-disk") && self.random.random_ratio(1, 3) {
            note("plan", &format!("the disk of {} is as it was some seconds ago", machines[node].name));
            count("faults.rolled back disks");
            disk.replace_with(&old);
            return;
        }
        for _ in 0..self.random.random_range(1..5) {
            if let Some(done) = damage(disk, &old, &mut self.random) {
                note("plan", &format!("damage on {}: {done}", machines[node].name));
                count("faults.damaged files");
            }
        }
    }
}

/// The lines between a machine and all others.
fn pairs_of(machines: &[Machine], node: usize) -> Pairs {
    let name = &machines[node].name;
    let others = machines.iter().map(|machine| &machine.name).filter(|other| *other != name);
    others.map(|other| (name.clone(), other.clone())).collect()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
