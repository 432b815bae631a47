//! Chooses the nodes of replicas, and the candidates for a partition without a leader.
//!
//! The rules, in this order: no two replicas in one failure domain while there are enough domains; active nodes before
//! draining nodes; the node with the fewest replicas; the highest rendezvous hash. The preferred leader is the replica
//! whose node is the preferred leader of the fewest partitions so far. A node without a zone is its own failure domain.
//!
//! Everything here is a pure function of the metadata: every node computes the same. New partitions are placed when the command
//! is applied, so these rules are part of the meaning of the controller's log: a change of the rules needs a new command, or
//! nodes of two versions would compute different metadata.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Refusal;
use super::controller_state::{CommandOutcome, ControllerState};
use super::entities::{NodeInfo, NodeState, Placement};

/// Raft id of the node in a cluster whose metadata predates the list of nodes.
const ONLY_NODE: u64 = 1;

/// Load of each node.
#[derive(Debug, Clone, Default)]
pub(super) struct Loads {
    /// Replicas, by raft id.
    pub(super) replicas: BTreeMap<u64, u32>,
    /// Partitions whose preferred leader it is, by raft id.
    pub(super) leaders: BTreeMap<u64, u32>,
}

impl Loads {
    pub(super) fn of<'a>(placements: impl Iterator<Item = &'a [u64]>) -> Self {
        let mut loads = Self::default();
        placements.for_each(|replicas| loads.add(replicas));
        loads
    }

    pub(super) fn add(&mut self, replicas: &[u64]) {
        for node in replicas {
            *self.replicas.entry(*node).or_default() += 1;
        }
        if let Some(first) = replicas.first() {
            *self.leaders.entry(*first).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, replicas: &[u64]) {
        for node in replicas {
            *self.replicas.entry(*node).or_default() -= 1;
        }
        if let Some(first) = replicas.first() {
            *self.leaders.entry(*first).or_default() -= 1;
        }
    }

    pub(super) fn replicas(&self, node: u64) -> u32 {
        self.replicas.get(&node).copied().unwrap_or(0)
    }

    pub(super) fn leaders(&self, node: u64) -> u32 {
        self.leaders.get(&node).copied().unwrap_or(0)
    }
}

/// Rendezvous (highest random weight) hashing, Thaler and Ravishankar 1998: breaks ties differently for every partition, and
/// identically on every node. The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
pub(super) fn rendezvous(topic: Uuid, partition: u32, node: u64) -> u64 {
    let (high, low) = topic.as_u64_pair();
    [high, low, u64::from(partition), node].into_iter().fold(0, |hash, part| {
        let mut mixed = (hash ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// Returns the candidates to lead a partition without a leader, best first: voters, as last reported, that are alive, in the
/// order of preference; then voters that should not lead (draining, leaving); last, replicas that are not known to vote, since a
/// report may be lost with the leader that made it. The caller tries the next candidate when one cannot lead.
pub fn leader_candidates(placement: &Placement, alive: impl Fn(u64) -> bool, state: &ControllerState) -> Vec<u64> {
    let voters = placement.replicas.iter().filter(|node| placement.voters.contains(node));
    let leaving = placement.voters.iter().filter(|node| !placement.replicas.contains(node));
    let filling = placement.replicas.iter().filter(|node| !placement.voters.contains(node));
    let mut candidates: Vec<(u8, u64)> = Vec::with_capacity(placement.replicas.len() + 1);
    for (votes, node) in voters.chain(leaving).map(|n| (true, *n)).chain(filling.map(|n| (false, *n))) {
        // Metadata that predates the list of nodes has one node, and it may lead.
        let state = state.nodes.get(&node).map_or(NodeState::Active, |info| info.state);
        if state == NodeState::Removed || !alive(node) {
            continue;
        }
        let class = match (votes, state) {
            (true, NodeState::Active) => 0,
            (true, _) => 1,
            (false, _) => 2,
        };
        candidates.push((class, node));
    }
    candidates.sort_by_key(|(class, _)| *class);
    candidates.into_iter().map(|(_, node)| node).collect()
}

/// Returns the node that should lead a partition without a leader: the first of [`leader_candidates`]. `None`: no replica is alive.
pub fn designated_leader(placement: &Placement, alive: impl Fn(u64) -> bool, state: &ControllerState) -> Option<u64> {
    leader_candidates(placement, alive, state).first().copied()
}

impl ControllerState {
    /// Returns the placement of a partition; `None` when there is no such partition. A partition that was created before
    /// the metadata contained placements is on the only node of that time.
    pub fn placement(&self, topic: Uuid, partition: u32) -> Option<Placement> {
        if let Some(placements) = self.placements.get(&topic) {
            return placements.get(partition as usize).cloned();
        }
        let known = self.topics.values().find(|known| known.id == topic)?;
        (i64::from(partition) < i64::from(known.partitions)).then(|| Placement::founded(vec![ONLY_NODE]))
    }

    /// Adds placements to topics from a version that had none.
    pub(super) fn fill_placements(&mut self) {
        for topic in self.topics.values() {
            self.placements.entry(topic.id).or_insert_with(|| {
                let partitions = usize::try_from(topic.partitions).unwrap_or(0);
                vec![Placement::founded(vec![ONLY_NODE]); partitions]
            });
        }
    }

    /// Returns the raft ids of nodes that new partitions may be placed on. Draining nodes are included: a drain is mostly a
    /// restart, which must not reject a topic or make its spread permanently bad.
    pub(super) fn holders(&self) -> Vec<u64> {
        self.nodes.values().filter(|node| node.stays()).map(|node| node.id).collect()
    }

    pub(super) fn loads(&self) -> Loads {
        Loads::of(self.placements.values().flatten().map(|placement| placement.replicas.as_slice()))
    }

    /// Returns the failure domain of a node.
    fn domain(&self, node: u64) -> (&str, u64) {
        match self.nodes.get(&node).map(|info| info.zone.as_str()) {
            None | Some("") => ("", node),
            Some(zone) => (zone, 0),
        }
    }

    /// Returns how many of `others` share a failure domain with the node.
    pub(super) fn crowding(&self, node: u64, others: impl IntoIterator<Item = u64>) -> usize {
        let domain = self.domain(node);
        others.into_iter().filter(|other| *other != node && self.domain(*other) == domain).count()
    }

    /// Returns the best of `candidates` for a replica in addition to those on `others`, by the rules above.
    pub(super) fn best_node(
        &self,
        (topic, partition): (Uuid, u32),
        candidates: impl IntoIterator<Item = u64>,
        others: &[u64],
        loads: &Loads,
    ) -> Option<u64> {
        candidates.into_iter().filter(|node| !others.contains(node)).min_by_key(|node| {
            let crowding = self.crowding(*node, others.iter().copied());
            let draining = self.nodes.get(node).is_some_and(|info| info.state != NodeState::Active);
            (crowding, draining, loads.replicas(*node), !rendezvous(topic, partition, *node))
        })
    }

    /// Places a new partition and adds it to `loads`. At most `factor` replicas; fewer when there are fewer nodes.
    fn place(&self, id: (Uuid, u32), factor: usize, loads: &mut Loads) -> Placement {
        let holders = self.holders();
        let mut replicas: Vec<u64> = Vec::with_capacity(factor);
        while replicas.len() < factor {
            let Some(node) = self.best_node(id, holders.iter().copied(), &replicas, loads) else { break };
            replicas.push(node);
        }
        if self.nodes.is_empty() {
            replicas.push(ONLY_NODE);
        }
        // The order after the first is by hash, so that the partitions of a leader that dies move to different leaders.
        replicas.sort_by_key(|node| !rendezvous(id.0, id.1, *node));
        let draining = |node: &u64| self.nodes.get(node).is_some_and(|info| info.state != NodeState::Active);
        let first = (0..replicas.len()).min_by_key(|at| (draining(&replicas[*at]), loads.leaders(replicas[*at]), *at));
        if let Some(first) = first {
            replicas[..=first].rotate_right(1);
        }
        loads.add(&replicas);
        Placement::founded(replicas)
    }

    /// Places the partitions of a topic that have no placement yet.
    pub(super) fn place_partitions(&mut self, topic: Uuid, partitions: i32, factor: i32) {
        let factor = usize::try_from(factor).unwrap_or(1).max(1);
        let mut loads = self.loads();
        let mut placements = self.placements.remove(&topic).unwrap_or_default();
        for partition in placements.len()..usize::try_from(partitions).unwrap_or(0) {
            placements.push(self.place((topic, partition as u32), factor, &mut loads));
        }
        self.placements.insert(topic, placements);
    }

    /// Returns how many partitions have the node among their replicas or voters.
    pub fn partitions_on(&self, node: u64) -> u32 {
        self.placements.values().flatten().filter(|placement| placement.holds(node)).count() as u32
    }

    fn placement_mut(&mut self, topic: Uuid, partition: u32) -> Result<&mut Placement, Refusal> {
        let placement = self.placements.get_mut(&topic).and_then(|all| all.get_mut(partition as usize));
        placement.ok_or(Refusal::UnknownPartition { topic, partition })
    }

    fn check_replicas(&self, field: &str, nodes: &[u64], may_hold: impl Fn(&NodeInfo) -> bool) -> Result<(), Refusal> {
        let rule = if nodes.is_empty() {
            "must have at least one node".to_owned()
        } else if let Some(twice) = nodes.iter().enumerate().find(|(at, node)| nodes[..*at].contains(node)) {
            format!("node {} is listed twice", twice.1)
        } else if let Some(bad) = nodes.iter().find(|node| !self.nodes.get(node).is_some_and(&may_hold)) {
            format!("node {bad} does not exist, or may not have a replica")
        } else {
            return Ok(());
        };
        Err(Refusal::InvalidReplicas { field: field.into(), nodes: nodes.to_vec(), rule })
    }

    /// Changes the assigned replicas of a partition. `from`: the replicas that the change was planned from.
    pub(super) fn assign(
        &mut self,
        topic: Uuid,
        partition: u32,
        from: Vec<u64>,
        replicas: Vec<u64>,
    ) -> Result<CommandOutcome, Refusal> {
        self.check_replicas("replicas", &replicas, |info| info.state != NodeState::Removed)?;
        let placement = self.placement_mut(topic, partition)?;
        if placement.replicas == replicas {
            return Ok(CommandOutcome::Done(None));
        }
        if placement.replicas != from {
            return Err(Refusal::Moved { expected: from, current: placement.replicas.clone() });
        }
        let added = replicas.iter().filter(|node| !from.contains(node)).count();
        if added > 1 || replicas.len() < from.len() {
            let rule = format!("may change one replica and drop none; the replicas are {from:?}");
            return Err(Refusal::InvalidReplicas { field: "replicas".into(), nodes: replicas, rule });
        }
        placement.replicas = replicas;
        Ok(CommandOutcome::Done(None))
    }

    /// Stores the voters of a partition's group, as reported by its leader. `index` is the raft index of the membership entry
    /// with these voters: a late report does not overwrite a newer one.
    pub(super) fn settle(
        &mut self,
        topic: Uuid,
        partition: u32,
        mut voters: Vec<u64>,
        index: u64,
    ) -> Result<CommandOutcome, Refusal> {
        voters.sort_unstable();
        self.check_replicas("voters", &voters, |_| true)?;
        let placement = self.placement_mut(topic, partition)?;
        if index >= placement.settled_index {
            placement.settled_index = index;
            placement.voters = voters;
            let Placement { replicas, voters, founders, .. } = placement;
            founders.retain(|node| replicas.contains(node) || voters.contains(node));
        }
        Ok(CommandOutcome::Done(None))
    }
}

#[cfg(test)]
mod tests;
