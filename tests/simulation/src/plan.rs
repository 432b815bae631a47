//! What is broken, and when: drawn from the seed while the simulation runs, and mended again.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use turmoil::Sim;

use crate::load::Board;
use crate::machine::Machine;
use crate::network;
use crate::trace::note;

/// What is wrong with one machine or line at present.
enum Broken {
    /// The machine has no power.
    Down(usize),
    /// The machine's power goes in the middle of a write; at the latest then.
    Failing(usize),
    /// The process was told to stop.
    Stopping(usize),
    /// These pairs do not hear one another.
    Cut(Vec<(String, String)>),
}

/// The faults of one simulation.
pub(crate) struct Plan {
    random: StdRng,
    /// When the next thing breaks.
    next: Duration,
    /// When nothing breaks any more.
    end: Duration,
    broken: Vec<(Duration, Broken)>,
    /// One node joins late and another leaves.
    change: Option<Duration>,
    /// Machines that lost power.
    pub(crate) crashes: u32,
    /// Lines that were cut.
    pub(crate) cuts: u32,
}

impl Plan {
    /// Begins at `now` and lasts for `length`. `change`: a node leaves on the way.
    pub(crate) fn new(mut random: StdRng, now: Duration, length: Duration, change: bool) -> Self {
        let first = now + ms(random.random_range(200..2000));
        let at = now + length.mul_f64(random.random_range(0.1..0.6));
        let change = change.then_some(at);
        Self { random, next: first, end: now + length, broken: Vec::new(), change, crashes: 0, cuts: 0 }
    }

    /// Does what is due. False: everything is mended and nothing will break any more.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, machines: &[Machine], board: &Board) -> bool {
        let now = sim.elapsed();
        let (due, later) = std::mem::take(&mut self.broken).into_iter().partition(|(until, _)| *until <= now);
        self.broken = later;
        for (_, broken) in Vec::from_iter::<Vec<_>>(due) {
            self.mend(sim, machines, broken, now);
        }
        if self.change.is_some_and(|at| at <= now) {
            self.change = None;
            // A founder leaves; the one that came later takes its place.
            let node = &machines[self.random.random_range(0..machines.len() - 1)].name;
            note("plan", &format!("{node} is to leave"));
            board.leaving.replace(Some(node.clone()));
        }
        if now >= self.end {
            return !self.broken.is_empty();
        }
        if now >= self.next {
            self.next = now + ms(self.random.random_range(300..3000));
            self.spoil(sim, machines, now);
        }
        true
    }

    fn spoil(&mut self, sim: &mut Sim<'_>, machines: &[Machine], now: Duration) {
        let node = self.random.random_range(0..machines.len());
        let name = machines[node].name.clone();
        let busy = self.broken.iter().any(|(_, broken)| match broken {
            Broken::Down(other) | Broken::Failing(other) | Broken::Stopping(other) => *other == node,
            Broken::Cut(_) => false,
        });
        match self.random.random_range(0..10) {
            0..3 if !busy && sim.is_host_running(name.as_str()) => self.crash(sim, machines, node, now),
            3..5 if !busy && sim.is_host_running(name.as_str()) => {
                let change = self.random.random_range(1..60);
                note("plan", &format!("power of {name} fails at change {change} of its disk"));
                machines[node].disk.crash_at(change, self.random.random());
                let until = now + ms(self.random.random_range(20..300));
                self.broken.push((until, Broken::Failing(node)));
            }
            5 if !busy && sim.is_host_running(name.as_str()) => {
                note("plan", &format!("{name} is told to stop"));
                machines[node].stop();
                self.broken.push((now + ms(self.random.random_range(500..8000)), Broken::Stopping(node)));
            }
            6..8 => {
                let other = &machines[(node + self.random.random_range(1..machines.len())) % machines.len()].name;
                self.cut(sim, vec![(name, other.clone())], now);
            }
            8..10 => {
                let others = machines.iter().map(|machine| machine.name.clone()).filter(|other| *other != name);
                let pairs = others.map(|other| (name.clone(), other)).collect();
                self.cut(sim, pairs, now);
            }
            _ => {}
        }
    }

    fn crash(&mut self, sim: &mut Sim<'_>, machines: &[Machine], node: usize, now: Duration) {
        let machine = &machines[node];
        note("plan", &format!("{} loses power", machine.name));
        self.crashes += 1;
        machine.disk.crash(self.random.random());
        sim.crash(machine.name.as_str());
        self.broken.push((now + ms(self.random.random_range(50..4000)), Broken::Down(node)));
    }

    fn cut(&mut self, sim: &mut Sim<'_>, pairs: Vec<(String, String)>, now: Duration) {
        self.cuts += 1;
        let how = self.random.random_range(0..3);
        let what = ["nothing arrives", "everything is late", "one way only"][how];
        note("plan", &format!("between {pairs:?} {what}"));
        for (a, b) in &pairs {
            network::cut(a, b);
            match how {
                0 => sim.partition(a.as_str(), b.as_str()),
                1 => sim.hold(a.as_str(), b.as_str()),
                _ => sim.partition_oneway(a.as_str(), b.as_str()),
            }
        }
        self.broken.push((now + ms(self.random.random_range(100..5000)), Broken::Cut(pairs)));
    }

    fn mend(&mut self, sim: &mut Sim<'_>, machines: &[Machine], broken: Broken, now: Duration) {
        match broken {
            Broken::Failing(node) => self.crash(sim, machines, node, now),
            Broken::Down(node) => {
                note("plan", &format!("{} has power again", machines[node].name));
                sim.bounce(machines[node].name.as_str());
            }
            Broken::Stopping(node) => {
                let name = machines[node].name.as_str();
                if sim.is_host_running(name) {
                    self.broken.push((now + ms(100), Broken::Stopping(node)));
                } else {
                    note("plan", &format!("{name} is started again"));
                    sim.bounce(name);
                }
            }
            Broken::Cut(pairs) => {
                note("plan", &format!("between {pairs:?} all is well"));
                for (a, b) in &pairs {
                    if network::mend(a, b) {
                        sim.release(a.as_str(), b.as_str());
                    }
                }
            }
        }
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
