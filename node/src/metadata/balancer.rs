//! Plans the next commands that bring replicas and preferred leaders to their target placement.
//!
//! The controller leader calls [`plan`] repeatedly: it proposes the returned commands and calls again once they are applied.
//! The plan handles, in this order: operations that are complete; new replicas whose node died before their log was filled;
//! replicas on nodes that are leaving; topics with fewer replicas than their replication factor; while a rebalance is running,
//! better zones and then even loads; last, preferred leaders, which moves no data.
//!
//! Invariants, each tested by property:
//! - one replica of a partition changes at a time, the number of replicas never shrinks, no node gets two;
//! - a new replica goes to a node that is active and alive;
//! - at most [`BalancerConfig::moves_max`] partitions move at a time (moves that wait for a dead node do not count);
//! - it converges: every move makes zones better, or loads more even with equal zones.
//!
//! A partition is changed only while it is at its target placement. The exception is a replica that was never filled: its node
//! may have died, and no data was moved yet.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use super::controller_state::{ControllerCommand, ControllerState};
use super::entities::{NodeState, OperationKind, OperationState, Placement};
use super::placement::{Loads, rendezvous};

/// When the node of a new replica is dead for this long (milliseconds), another node gets the replica if one can.
const FILL_PATIENCE_MS: u64 = 30_000;

/// What the controller leader observes and the metadata does not contain.
#[derive(Debug, Clone, Default)]
pub struct ClusterObservation {
    /// Raft ids of the nodes with recent heartbeats, itself included.
    pub alive: BTreeSet<u64>,
    /// By raft id: milliseconds since a node's last heartbeat. Absent: alive, or not known.
    pub dead_for_ms: BTreeMap<u64, u64>,
    /// Raft ids that vote in the controller group.
    pub controller_voters: BTreeSet<u64>,
}

impl ClusterObservation {
    pub(super) fn is_alive(&self, node: u64) -> bool {
        self.alive.contains(&node)
    }

    pub(super) fn dead_for(&self, node: u64, at_least_ms: u64) -> bool {
        !self.is_alive(node) && self.dead_for_ms.get(&node).is_some_and(|dead| *dead >= at_least_ms)
    }

    pub(super) fn live(&self, nodes: &[u64]) -> usize {
        nodes.iter().filter(|node| self.is_alive(**node)).count()
    }

    /// Returns whether a majority of the voters is alive: the partition can have a leader, and so be moved.
    pub(super) fn has_majority(&self, placement: &Placement) -> bool {
        self.live(&placement.voters) > placement.voters.len() / 2
    }

    /// Returns the nodes that may get a replica: active and alive.
    pub(super) fn targets(&self, state: &ControllerState) -> impl Iterator<Item = u64> {
        let may = |id: &u64| state.nodes.get(id).is_some_and(|node| node.state == NodeState::Active);
        self.alive.iter().copied().filter(may)
    }
}

/// Limits of the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalancerConfig {
    /// Maximum number of partitions whose replicas move at the same time.
    pub moves_max: usize,
    /// Milliseconds after which a dead node is replaced; 0: never.
    pub replace_dead_after_ms: u64,
}

/// A partition, and the replicas that the plan assigns to it.
struct PlannedPartition<'a> {
    id: (Uuid, u32),
    /// Number of the topic, for counting replicas by topic.
    topic: usize,
    /// Replication factor of the topic.
    wanted: usize,
    now: &'a Placement,
    replicas: Cow<'a, [u64]>,
}

impl PlannedPartition<'_> {
    fn movable(&self) -> bool {
        matches!(self.replicas, Cow::Borrowed(_)) && self.now.settled()
    }

    /// Nodes whose replica is assigned and does not vote yet.
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

/// Rank of a move: how much it evens the load and the topic's spread, whether it keeps the preferred leader, and a hash.
type Merit = (u32, i64, bool, u64);

struct Plan<'a> {
    state: &'a ControllerState,
    observed: &'a ClusterObservation,
    targets: Vec<u64>,
    partitions: Vec<PlannedPartition<'a>>,
    loads: Loads,
    /// Moves that may still be started.
    budget: usize,
    /// Partitions are moving, or would move without the limit.
    busy: bool,
    commands: Vec<ControllerCommand>,
}

/// Returns the next commands, to be applied in this order. Empty: everything is at its target, or waits for an external event.
pub(crate) fn plan(
    state: &ControllerState,
    observed: &ClusterObservation,
    config: &BalancerConfig,
    now_ms: i64,
) -> Vec<ControllerCommand> {
    let mut plan = Plan::new(state, observed, config);
    plan.end_operations(now_ms);
    plan.replace_the_dead(config.replace_dead_after_ms, now_ms);
    if !plan.commands.is_empty() {
        // They change which nodes may get replicas: the rest is planned from the resulting state.
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
    fn new(state: &'a ControllerState, observed: &'a ClusterObservation, config: &BalancerConfig) -> Self {
        let mut partitions = Vec::new();
        for (number, topic) in state.topics.values().enumerate() {
            let wanted = usize::try_from(topic.replication_factor).unwrap_or(1);
            for (partition, now) in state.placements.get(&topic.id).into_iter().flatten().enumerate() {
                let id = (topic.id, partition as u32);
                partitions.push(PlannedPartition {
                    id,
                    topic: number,
                    wanted,
                    now,
                    replicas: Cow::Borrowed(&now.replicas),
                });
            }
        }
        let moving = |planned: &&PlannedPartition<'_>| {
            let waits = planned.filling().any(|_| true) && !planned.filling().any(|node| observed.is_alive(node));
            !planned.now.settled() && observed.has_majority(planned.now) && !waits
        };
        let moving = partitions.iter().filter(moving).count();
        Self {
            state,
            observed,
            targets: observed.targets(state).collect(),
            loads: Loads::of(partitions.iter().map(|planned| planned.replicas.as_ref())),
            partitions,
            budget: config.moves_max.max(1).saturating_sub(moving),
            busy: moving > 0,
            commands: Vec::new(),
        }
    }

    fn state_of(&self, node: u64) -> Option<NodeState> {
        self.state.nodes.get(&node).map(|info| info.state)
    }

    fn finish(&mut self, id: u64, now_ms: i64) {
        self.commands.push(ControllerCommand::FinishOperation { id, state: OperationState::Done, now_ms });
    }

    fn assign(&mut self, at: usize, replicas: Vec<u64>) {
        let planned = &mut self.partitions[at];
        self.loads.remove(&planned.replicas);
        self.loads.add(&replicas);
        let from = std::mem::replace(&mut planned.replicas, Cow::Owned(replicas.clone())).into_owned();
        let (topic, partition) = planned.id;
        self.commands.push(ControllerCommand::Assign { topic, partition, from, replicas });
    }

    /// Assigns if the limit on moves allows it.
    fn start_move(&mut self, at: usize, replicas: Vec<u64>) {
        self.busy = true;
        if self.budget > 0 {
            self.budget -= 1;
            self.assign(at, replicas);
        }
    }

    fn end_operations(&mut self, now_ms: i64) {
        // The replacement of a dead node is cancelled when the node is alive again and no other node has superseded it.
        let mut returned = BTreeSet::new();
        for operation in self.state.running() {
            let (id, node) = (operation.id, operation.node);
            match operation.kind {
                OperationKind::Replace if self.observed.is_alive(node) && !self.state.superseded(node) => {
                    returned.insert(node);
                    self.commands.push(ControllerCommand::CancelOperation { id, now_ms });
                }
                // A dead node leads nothing.
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
            if !needed && !returned.contains(&node.id) {
                self.commands.push(ControllerCommand::RemoveNode { node: node.id, now_ms });
            }
        }
    }

    /// Starts to replace the node that has been dead longest, when the other nodes can hold its replicas.
    fn replace_the_dead(&mut self, after_ms: u64, now_ms: i64) {
        if after_ms == 0 {
            return;
        }
        let dead = self.observed.dead_for_ms.iter().filter(|(node, _)| self.observed.dead_for(**node, after_ms));
        let dead = dead.filter(|(node, _)| self.state.can_do_without(**node).is_ok());
        let Some((node, _)) = dead.max_by_key(|(node, dead_for)| (**dead_for, std::cmp::Reverse(**node))) else {
            return;
        };
        let needed = self.partitions.iter().map(|planned| planned.replicas.len()).max().unwrap_or(0);
        if self.targets.len() >= needed {
            self.commands.push(ControllerCommand::StartOperation { kind: OperationKind::Replace, node: *node, now_ms });
        }
    }

    /// Assigns replicas that were never filled to other nodes, when their node is leaving or has been dead for long.
    fn refill(&mut self) {
        for at in 0..self.partitions.len() {
            let planned = &self.partitions[at];
            let unusable = |node: &u64| {
                let stays = self.state.nodes.get(node).is_some_and(|info| info.stays());
                !stays || self.observed.dead_for(*node, FILL_PATIENCE_MS)
            };
            let Some(from) = planned.filling().find(unusable) else { continue };
            let others = planned.without(from);
            // A node that still has the data is best.
            let has_it = self.targets.iter().copied().filter(|node| planned.now.voters.contains(node));
            let to = self.state.best_node(planned.id, has_it, &planned.replicas, &self.loads).or_else(|| {
                let targets = self.targets.iter().copied().filter(|node| *node != from);
                self.state.best_node(planned.id, targets, &others, &self.loads)
            });
            if let Some(to) = to {
                let replicas = planned.with(from, to);
                self.start_move(at, replicas);
            }
        }
    }

    /// Moves replicas off nodes that are leaving.
    fn evacuate(&mut self) {
        let leaving = self.state.nodes.values().filter(|node| !node.stays()).map(|node| node.id);
        let leaving: BTreeSet<u64> = leaving.collect();
        for at in 0..self.partitions.len() {
            let planned = &self.partitions[at];
            let Some(from) = planned.replicas.iter().find(|node| leaving.contains(node)).copied() else { continue };
            if !planned.movable() || !self.observed.has_majority(planned.now) {
                continue;
            }
            let targets = self.targets.iter().copied().filter(|node| !planned.replicas.contains(node));
            if let Some(to) = self.state.best_node(planned.id, targets, &planned.without(from), &self.loads) {
                let replicas = planned.with(from, to);
                self.start_move(at, replicas);
            }
        }
    }

    /// Adds replicas to partitions with fewer than their replication factor, those with the fewest first.
    fn grow(&mut self) {
        let mut short: Vec<usize> = (0..self.partitions.len()).collect();
        short.retain(|at| {
            let planned = &self.partitions[*at];
            planned.replicas.len() < planned.wanted && planned.movable() && self.observed.has_majority(planned.now)
        });
        short.sort_by_key(|at| self.partitions[*at].replicas.len());
        for at in short {
            let planned = &self.partitions[at];
            let to = self.state.best_node(planned.id, self.targets.iter().copied(), &planned.replicas, &self.loads);
            if let Some(to) = to {
                let mut replicas = planned.replicas.to_vec();
                replicas.push(to);
                self.start_move(at, replicas);
            }
        }
    }

    /// Returns the replicas that a rebalance may move: position of the partition, the partition, and the node of the replica.
    fn spreadable(&self) -> impl Iterator<Item = (usize, &PlannedPartition<'a>, u64)> {
        let movable = |(_, planned): &(usize, &PlannedPartition<'_>)| {
            planned.movable() && self.observed.has_majority(planned.now)
        };
        self.partitions.iter().enumerate().filter(movable).flat_map(|(at, planned)| {
            let active = |node: &&u64| self.state_of(**node) == Some(NodeState::Active);
            planned.replicas.iter().filter(active).map(move |from| (at, planned, *from))
        })
    }

    /// Moves replicas that share a failure domain with another replica of their partition to a domain with fewer of them.
    fn better_zones(&mut self) {
        loop {
            let better = self.spreadable().find_map(|(at, planned, from)| {
                let others = planned.without(from);
                let crowding = self.state.crowding(from, others.iter().copied());
                if crowding == 0 {
                    return None;
                }
                let targets = self.targets.iter().copied().filter(|node| *node != from);
                let to = self.state.best_node(planned.id, targets, &others, &self.loads)?;
                (self.state.crowding(to, others.iter().copied()) < crowding).then(|| (at, planned.with(from, to)))
            });
            let Some((at, replicas)) = better else { return };
            self.start_move(at, replicas);
            if self.budget == 0 {
                return;
            }
        }
    }

    /// Moves replicas from nodes with more to nodes with at least two fewer, where zones do not get worse.
    fn even_loads(&mut self) {
        while let Some((at, replicas)) = self.evening_move() {
            self.start_move(at, replicas);
            if self.budget == 0 {
                return;
            }
        }
    }

    /// Returns the move that evens the load most. Ties: the topic with the worst spread, not the preferred leader, then by hash.
    fn evening_move(&self) -> Option<(usize, Vec<u64>)> {
        let mut of_topic: BTreeMap<(usize, u64), i64> = BTreeMap::new();
        for planned in &self.partitions {
            for node in planned.replicas.iter() {
                *of_topic.entry((planned.topic, *node)).or_default() += 1;
            }
        }
        let on = |planned: &PlannedPartition<'_>, node: u64| of_topic.get(&(planned.topic, node)).copied().unwrap_or(0);
        let mut best: Option<(Merit, usize, u64, u64)> = None;
        for (at, planned, from) in self.spreadable() {
            for to in self.targets.iter().copied().filter(|to| !planned.replicas.contains(to)) {
                let gain = self.loads.replicas(from).saturating_sub(self.loads.replicas(to));
                if gain < best.map_or(2, |((gain, ..), ..)| gain) {
                    continue;
                }
                let others = || planned.replicas.iter().copied().filter(|node| *node != from);
                if self.state.crowding(to, others()) > self.state.crowding(from, others()) {
                    continue;
                }
                let spread = on(planned, from) - on(planned, to);
                let key = (gain, spread, planned.replicas[0] != from, rendezvous(planned.id.0, planned.id.1, to));
                if best.is_none_or(|(known, ..)| known < key) {
                    best = Some((key, at, from, to));
                }
            }
        }
        best.map(|(_, at, from, to)| (at, self.partitions[at].with(from, to)))
    }

    /// Moves preferred leaders from nodes with more to nodes with at least two fewer, through other nodes where there is no
    /// direct way: a semi-matching is optimal once no such path is left (Harvey, Ladner, Lovász and Tamir 2006).
    /// Returns whether nothing was left to do; takes at most `paths_max` paths.
    fn even_leaders(&mut self, paths_max: usize) -> bool {
        for _ in 0..paths_max {
            let Some(path) = self.evening_path() else { return true };
            // From the far end: no single step makes the distribution of leaders less even.
            for (at, to) in path.into_iter().rev() {
                let mut replicas = self.partitions[at].replicas.to_vec();
                if let Some(place) = replicas.iter().position(|node| *node == to) {
                    replicas.swap(0, place);
                    self.assign(at, replicas);
                }
            }
        }
        false
    }

    /// Returns a path from a node with the most preferred leaders to one with at least two fewer. Each step: a partition and its
    /// new preferred leader.
    fn evening_path(&self) -> Option<Vec<(usize, u64)>> {
        let active: BTreeSet<u64> =
            self.state.nodes.values().filter(|node| node.state == NodeState::Active).map(|node| node.id).collect();
        let leaders = || active.iter().map(|node| self.loads.leaders(*node));
        if leaders().max() <= leaders().min().map(|fewest| fewest + 1) {
            return None;
        }
        let mut edges: BTreeMap<u64, BTreeMap<u64, usize>> = BTreeMap::new();
        for (at, planned) in self.partitions.iter().enumerate() {
            let [first, rest @ ..] = planned.replicas.as_ref() else { continue };
            if !planned.now.settled() || !active.contains(first) {
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
