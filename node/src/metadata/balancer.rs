//! What to change next, so that replicas and leaders are where they should be.
//!
//! The controller leader calls [`plan`] again and again, proposes what it says, and calls again once that is applied.
//! In this order: operations that came to their end; replicas whose new node died while it was filled; replicas off nodes
//! that leave; topics with fewer replicas than they ask for; while a rebalance is under way, better zones and then even
//! loads; at last preferred leaders, which moves no data.
//!
//! Promises, each tested by property:
//! - one replica of a partition changes at a time, none is given up, no node gets two;
//! - a new replica goes to a node that is active and alive;
//! - at most [`BalancerConfig::moves_max`] partitions move at a time (those that cannot go on do not count);
//! - it comes to rest: every move makes zones better, or loads more even at the same zones.
//!
//! A partition is changed only while it is settled, but for a replica that was never filled: its node may have died, and
//! nothing was moved yet.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use super::placement::{Loads, rendezvous};
use super::state::{Command, ControllerState};
use super::types::{NodeState, OperationKind, OperationState, Placement};

/// A node that was to take a replica and is dead for this long (milliseconds) is not waited for if another can take it.
const FILL_PATIENCE_MS: u64 = 30_000;

/// What the controller leader sees that is not in the state.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Raft ids of the nodes that it hears from, itself included.
    pub alive: BTreeSet<u64>,
    /// By raft id: for how many milliseconds a node was not heard. Absent: alive, or not known.
    pub dead_for_ms: BTreeMap<u64, u64>,
    /// Raft ids that vote in the controller group.
    pub controller_voters: BTreeSet<u64>,
}

impl Observed {
    pub(super) fn is_alive(&self, node: u64) -> bool {
        self.alive.contains(&node)
    }

    pub(super) fn dead_for(&self, node: u64, at_least_ms: u64) -> bool {
        !self.is_alive(node) && self.dead_for_ms.get(&node).is_some_and(|dead| *dead >= at_least_ms)
    }

    pub(super) fn live(&self, nodes: &[u64]) -> usize {
        nodes.iter().filter(|node| self.is_alive(**node)).count()
    }

    /// The partition can be led, and so be moved.
    pub(super) fn has_majority(&self, placement: &Placement) -> bool {
        self.live(&placement.voters) > placement.voters.len() / 2
    }

    /// Nodes that may take a replica.
    pub(super) fn targets(&self, state: &ControllerState) -> impl Iterator<Item = u64> {
        let may = |id: &u64| state.nodes.get(id).is_some_and(|node| node.state == NodeState::Active);
        self.alive.iter().copied().filter(may)
    }
}

/// How eager the balancer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalancerConfig {
    /// Partitions whose replicas move at the same time.
    pub moves_max: usize,
    /// Replace a node that is dead for this many milliseconds; 0: never.
    pub replace_dead_after_ms: u64,
}

/// A partition as the plan would have it.
struct Slot<'a> {
    id: (Uuid, u32),
    /// Which topic, for counting.
    topic: usize,
    /// Replicas that the topic asks for.
    wanted: usize,
    now: &'a Placement,
    replicas: Cow<'a, [u64]>,
}

impl Slot<'_> {
    fn movable(&self) -> bool {
        matches!(self.replicas, Cow::Borrowed(_)) && self.now.settled()
    }

    /// Nodes that are to take a replica and do not have it yet.
    fn filling(&self) -> impl Iterator<Item = u64> {
        self.replicas.iter().copied().filter(|node| !self.now.voters.contains(node))
    }

    fn with(&self, from: u64, to: u64) -> Vec<u64> {
        self.replicas.iter().map(|node| if *node == from { to } else { *node }).collect()
    }

    fn without(&self, node: u64) -> Vec<u64> {
        self.replicas.iter().copied().filter(|other| *other != node).collect()
    }
}

/// How good a move is: by how much it evens loads and the topic, whether it moves no preferred leader, and a hash.
type Merit = (u32, i64, bool, u64);

struct Plan<'a> {
    state: &'a ControllerState,
    observed: &'a Observed,
    targets: Vec<u64>,
    slots: Vec<Slot<'a>>,
    loads: Loads,
    /// Moves that may still be started.
    budget: usize,
    /// Partitions move already, or could if there were no bound.
    busy: bool,
    commands: Vec<Command>,
}

/// The next commands, to be applied in this order; none: all is as it should be, or waits for something outside.
pub(crate) fn plan(state: &ControllerState, observed: &Observed, config: &BalancerConfig, now_ms: i64) -> Vec<Command> {
    let mut plan = Plan::new(state, observed, config);
    plan.end_operations(now_ms);
    plan.replace_the_dead(config.replace_dead_after_ms, now_ms);
    if !plan.commands.is_empty() {
        // They change which nodes take replicas: the rest is planned from what they lead to.
        return plan.commands;
    }
    plan.refill();
    plan.evacuate();
    plan.grow();
    let rebalance = state.running().find(|operation| operation.kind == OperationKind::Rebalance);
    if rebalance.is_some() && plan.budget > 0 {
        plan.better_zones();
        plan.even_loads();
    }
    if !plan.busy {
        let even = plan.even_leaders(config.moves_max.max(1));
        if let Some(operation) = rebalance
            && even
        {
            plan.finish(operation.id, now_ms);
        }
    }
    plan.commands
}

impl<'a> Plan<'a> {
    fn new(state: &'a ControllerState, observed: &'a Observed, config: &BalancerConfig) -> Self {
        let mut slots = Vec::new();
        for (number, topic) in state.topics.values().enumerate() {
            let wanted = usize::try_from(topic.replication_factor).unwrap_or(1);
            for (partition, now) in state.placements.get(&topic.id).into_iter().flatten().enumerate() {
                let id = (topic.id, partition as u32);
                slots.push(Slot { id, topic: number, wanted, now, replicas: Cow::Borrowed(&now.replicas) });
            }
        }
        let moving = |slot: &&Slot<'_>| {
            let waits = slot.filling().any(|_| true) && !slot.filling().any(|node| observed.is_alive(node));
            !slot.now.settled() && observed.has_majority(slot.now) && !waits
        };
        let moving = slots.iter().filter(moving).count();
        Self {
            state,
            observed,
            targets: observed.targets(state).collect(),
            loads: Loads::of(slots.iter().map(|slot| slot.replicas.as_ref())),
            slots,
            budget: config.moves_max.max(1).saturating_sub(moving),
            busy: moving > 0,
            commands: Vec::new(),
        }
    }

    fn state_of(&self, node: u64) -> Option<NodeState> {
        self.state.nodes.get(&node).map(|info| info.state)
    }

    fn finish(&mut self, id: u64, now_ms: i64) {
        self.commands.push(Command::FinishOperation { id, state: OperationState::Done, now_ms });
    }

    fn assign(&mut self, at: usize, replicas: Vec<u64>) {
        let slot = &mut self.slots[at];
        self.loads.remove(&slot.replicas);
        self.loads.add(&replicas);
        let from = std::mem::replace(&mut slot.replicas, Cow::Owned(replicas.clone())).into_owned();
        let (topic, partition) = slot.id;
        self.commands.push(Command::Assign { topic, partition, from, replicas });
    }

    /// Assigns if the bound on moves allows it.
    fn start_move(&mut self, at: usize, replicas: Vec<u64>) {
        self.busy = true;
        if self.budget > 0 {
            self.budget -= 1;
            self.assign(at, replicas);
        }
    }

    fn end_operations(&mut self, now_ms: i64) {
        // A dead node that came back before it was replaced is welcome.
        let mut welcome = BTreeSet::new();
        for operation in self.state.running() {
            let (id, node) = (operation.id, operation.node);
            match operation.kind {
                OperationKind::Replace if self.observed.is_alive(node) && !self.state.superseded(node) => {
                    welcome.insert(node);
                    self.commands.push(Command::CancelOperation { id, now_ms });
                }
                // A node that is gone leads nothing.
                OperationKind::Drain
                    if self.observed.dead_for(node, 0) || self.state_of(node) != Some(NodeState::Draining) =>
                {
                    self.finish(id, now_ms);
                }
                _ => {}
            }
        }
        for node in self.state.nodes.values().filter(|node| node.state == NodeState::Decommissioning) {
            let needed = self.state.partitions_on(node.id) > 0 || self.observed.controller_voters.contains(&node.id);
            if !needed && !welcome.contains(&node.id) {
                self.commands.push(Command::RemoveNode { node: node.id, now_ms });
            }
        }
    }

    /// Starts to replace the node that is dead for longest, when the others can hold its replicas.
    fn replace_the_dead(&mut self, after_ms: u64, now_ms: i64) {
        if after_ms == 0 {
            return;
        }
        let dead = self.observed.dead_for_ms.iter().filter(|(node, _)| self.observed.dead_for(**node, after_ms));
        let dead = dead.filter(|(node, _)| self.state.can_do_without(**node).is_ok());
        let Some((node, _)) = dead.max_by_key(|(node, dead_for)| (**dead_for, std::cmp::Reverse(**node))) else {
            return;
        };
        let needed = self.slots.iter().map(|slot| slot.replicas.len()).max().unwrap_or(0);
        if self.targets.len() >= needed {
            self.commands.push(Command::StartOperation { kind: OperationKind::Replace, node: *node, now_ms });
        }
    }

    /// Replicas that were never filled, and whose node leaves or is dead for long: others take them.
    fn refill(&mut self) {
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            let given_up = |node: &u64| {
                let stays = self.state.nodes.get(node).is_some_and(|info| info.stays());
                !stays || self.observed.dead_for(*node, FILL_PATIENCE_MS)
            };
            let Some(from) = slot.filling().find(given_up) else { continue };
            let others = slot.without(from);
            // Best is a node that has the data still.
            let has_it = self.targets.iter().copied().filter(|node| slot.now.voters.contains(node));
            let to = self.state.best_node(slot.id, has_it, &slot.replicas, &self.loads).or_else(|| {
                let targets = self.targets.iter().copied().filter(|node| *node != from);
                self.state.best_node(slot.id, targets, &others, &self.loads)
            });
            if let Some(to) = to {
                let replicas = slot.with(from, to);
                self.start_move(at, replicas);
            }
        }
    }

    /// Replicas off nodes that leave.
    fn evacuate(&mut self) {
        let leaving = self.state.nodes.values().filter(|node| !node.stays()).map(|node| node.id);
        let leaving: BTreeSet<u64> = leaving.collect();
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            let Some(from) = slot.replicas.iter().find(|node| leaving.contains(node)).copied() else { continue };
            if !slot.movable() || !self.observed.has_majority(slot.now) {
                continue;
            }
            let targets = self.targets.iter().copied().filter(|node| !slot.replicas.contains(node));
            if let Some(to) = self.state.best_node(slot.id, targets, &slot.without(from), &self.loads) {
                let replicas = slot.with(from, to);
                self.start_move(at, replicas);
            }
        }
    }

    /// Partitions with fewer replicas than their topic asks for, those with fewest first.
    fn grow(&mut self) {
        let mut short: Vec<usize> = (0..self.slots.len()).collect();
        short.retain(|at| {
            let slot = &self.slots[*at];
            slot.replicas.len() < slot.wanted && slot.movable() && self.observed.has_majority(slot.now)
        });
        short.sort_by_key(|at| self.slots[*at].replicas.len());
        for at in short {
            let slot = &self.slots[at];
            let to = self.state.best_node(slot.id, self.targets.iter().copied(), &slot.replicas, &self.loads);
            if let Some(to) = to {
                let mut replicas = slot.replicas.to_vec();
                replicas.push(to);
                self.start_move(at, replicas);
            }
        }
    }

    /// Partitions that could move for a rebalance, with the replicas that could.
    fn spreadable(&self) -> impl Iterator<Item = (usize, &Slot<'a>, u64)> {
        let movable = |(_, slot): &(usize, &Slot<'_>)| slot.movable() && self.observed.has_majority(slot.now);
        self.slots.iter().enumerate().filter(movable).flat_map(|(at, slot)| {
            let active = |node: &&u64| self.state_of(**node) == Some(NodeState::Active);
            slot.replicas.iter().filter(active).map(move |from| (at, slot, *from))
        })
    }

    /// Replicas that share a failure domain with another one of their partition, to a domain where they do less.
    fn better_zones(&mut self) {
        loop {
            let better = self.spreadable().find_map(|(at, slot, from)| {
                let others = slot.without(from);
                let crowding = self.state.crowding(from, others.iter().copied());
                if crowding == 0 {
                    return None;
                }
                let targets = self.targets.iter().copied().filter(|node| *node != from);
                let to = self.state.best_node(slot.id, targets, &others, &self.loads)?;
                (self.state.crowding(to, others.iter().copied()) < crowding).then(|| (at, slot.with(from, to)))
            });
            let Some((at, replicas)) = better else { return };
            self.start_move(at, replicas);
            if self.budget == 0 {
                return;
            }
        }
    }

    /// From nodes with more replicas to nodes with at least two fewer, at zones that are no worse.
    fn even_loads(&mut self) {
        while let Some((at, replicas)) = self.evening_move() {
            self.start_move(at, replicas);
            if self.budget == 0 {
                return;
            }
        }
    }

    /// The move that evens most. Among equals: of the topic that is spread worst, not of the preferred leader, by hash.
    fn evening_move(&self) -> Option<(usize, Vec<u64>)> {
        let mut of_topic: BTreeMap<(usize, u64), i64> = BTreeMap::new();
        for slot in &self.slots {
            for node in slot.replicas.iter() {
                *of_topic.entry((slot.topic, *node)).or_default() += 1;
            }
        }
        let on = |slot: &Slot<'_>, node: u64| of_topic.get(&(slot.topic, node)).copied().unwrap_or(0);
        let mut best: Option<(Merit, usize, u64, u64)> = None;
        for (at, slot, from) in self.spreadable() {
            for to in self.targets.iter().copied().filter(|to| !slot.replicas.contains(to)) {
                let gain = self.loads.replicas(from).saturating_sub(self.loads.replicas(to));
                if gain < best.map_or(2, |((gain, ..), ..)| gain) {
                    continue;
                }
                let others = || slot.replicas.iter().copied().filter(|node| *node != from);
                if self.state.crowding(to, others()) > self.state.crowding(from, others()) {
                    continue;
                }
                let spread = on(slot, from) - on(slot, to);
                let key = (gain, spread, slot.replicas[0] != from, rendezvous(slot.id.0, slot.id.1, to));
                if best.is_none_or(|(known, ..)| known < key) {
                    best = Some((key, at, from, to));
                }
            }
        }
        best.map(|(_, at, from, to)| (at, self.slots[at].with(from, to)))
    }

    /// Preferred leaders from nodes with more to nodes with at least two fewer, over other nodes where there is no direct
    /// way: a semi-matching is as even as can be once no such path is left (Harvey, Ladner, Lovász and Tamir 2006).
    /// Answers whether nothing was left to do; at most `paths_max` paths are taken.
    fn even_leaders(&mut self, paths_max: usize) -> bool {
        for _ in 0..paths_max {
            let Some(path) = self.evening_path() else { return true };
            // From the far end on: every step on its own leaves the leaders no less even.
            for (at, to) in path.into_iter().rev() {
                let mut replicas = self.slots[at].replicas.to_vec();
                if let Some(place) = replicas.iter().position(|node| *node == to) {
                    replicas.swap(0, place);
                    self.assign(at, replicas);
                }
            }
        }
        false
    }

    /// Steps from the most preferred node to one that is preferred at least two times less: partition, new first.
    fn evening_path(&self) -> Option<Vec<(usize, u64)>> {
        let active: BTreeSet<u64> =
            self.state.nodes.values().filter(|node| node.state == NodeState::Active).map(|node| node.id).collect();
        let leaders = || active.iter().map(|node| self.loads.leaders(*node));
        if leaders().max() <= leaders().min().map(|fewest| fewest + 1) {
            return None;
        }
        let mut edges: BTreeMap<u64, BTreeMap<u64, usize>> = BTreeMap::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let [first, rest @ ..] = slot.replicas.as_ref() else { continue };
            if !slot.now.settled() || !active.contains(first) {
                continue;
            }
            for to in rest.iter().filter(|node| active.contains(node)) {
                edges.entry(*first).or_default().entry(*to).or_insert(at);
            }
        }
        let mut starts: Vec<u64> = edges.keys().copied().collect();
        starts.sort_by_key(|node| std::cmp::Reverse(self.loads.leaders(*node)));
        starts.into_iter().find_map(|start| {
            let mut reached: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
            let mut queue = VecDeque::from([start]);
            while let Some(node) = queue.pop_front() {
                if self.loads.leaders(node) + 2 <= self.loads.leaders(start) {
                    let mut path = Vec::new();
                    let mut to = node;
                    while let Some((from, at)) = reached.get(&to).filter(|_| to != start) {
                        path.push((*at, to));
                        to = *from;
                    }
                    path.reverse();
                    return Some(path);
                }
                for (to, at) in edges.get(&node).into_iter().flatten() {
                    if *to != start && !reached.contains_key(to) {
                        reached.insert(*to, (node, *at));
                        queue.push_back(*to);
                    }
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests;
