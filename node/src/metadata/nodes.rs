//! Who belongs to the cluster: founding, joining, leaving for good.
//!
//! A node is its UUID, which is in its data directory; name and addresses may change. Raft ids count up and are never used
//! again. A node that comes with a new UUID and the name of a node that nobody hears from any more is that node with a wiped
//! or replaced disk: it takes the old one's place in every partition, and the old one is on its way out ("superseded").

use uuid::Uuid;

use super::Refusal;
use super::state::{ControllerState, Outcome};
use super::types::{Joining, NodeInfo, NodeState, OperationKind, OperationState};
use crate::model::{Addresses, ListenerName};

/// Nodes of a cluster that were not removed. Every one of them is a member of the controller group.
pub(crate) const NODES_MAX: usize = 256;

/// Removed nodes that are remembered by name. One that is forgotten is refused all the same: it says that it is a member
/// of this cluster, and the cluster does not know it.
const REMOVED_MAX: usize = 1000;

impl ControllerState {
    /// Founds the cluster, or enters the nodes of one that was founded before nodes were agreed on.
    pub(super) fn found(&mut self, cluster_id: Uuid, nodes: Vec<NodeInfo>) -> Outcome {
        if self.cluster_id.is_nil() {
            self.cluster_id = cluster_id;
        }
        if self.cluster_id == cluster_id && self.nodes.is_empty() {
            self.nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
            self.next_node = self.nodes.keys().last().map_or(0, |last| last + 1);
            // Deletions of the version before: whoever is here now reports.
            for deleted in &mut self.deleted {
                deleted.nodes = self.nodes.keys().copied().collect();
            }
        }
        Outcome::Done(None)
    }

    /// The node that an operator means: by UUID, or by name where that is unique. A name means a node that stays before one
    /// that is on its way out, and that before a removed one.
    ///
    /// # Errors
    /// [`Refusal::NoSuchNode`], [`Refusal::AmbiguousName`].
    pub fn find_node(&self, text: &str) -> Result<&NodeInfo, Refusal> {
        if let Ok(uuid) = text.parse::<Uuid>()
            && let Some(node) = self.node_of(uuid)
        {
            return Ok(node);
        }
        let class = |node: &NodeInfo| match node.state {
            NodeState::Active | NodeState::Draining => 0,
            NodeState::Decommissioning => 1,
            NodeState::Removed => 2,
        };
        for wanted in 0..3 {
            let mut found = self.nodes.values().filter(|node| node.name == text && class(node) == wanted);
            match (found.next(), found.count()) {
                (Some(node), 0) => return Ok(node),
                (Some(_), more) => return Err(Refusal::AmbiguousName { name: text.into(), nodes: more + 1 }),
                (None, _) => {}
            }
        }
        Err(Refusal::NoSuchNode(text.into()))
    }

    /// The node with this identity, removed ones included.
    pub fn node_of(&self, uuid: Uuid) -> Option<&NodeInfo> {
        self.nodes.values().find(|node| node.uuid == uuid)
    }

    /// Why a peer that says it has this raft id is no member, where that is certain: it was removed. One that was never heard
    /// of joined after what is known here, and may lead the group from which the rest is to be learnt.
    pub(crate) fn departed(&self, id: u64) -> Option<Refusal> {
        let removed = |name: &str| Refusal::Removed { node: id, name: name.to_owned() };
        match self.nodes.get(&id) {
            Some(node) => (node.state == NodeState::Removed).then(|| removed(&node.name)),
            // Ids count up: this one was given, and is not there any more.
            None => (id < self.next_node).then(|| removed("its name is forgotten")),
        }
    }

    pub(super) fn node(&self, id: u64) -> Result<&NodeInfo, Refusal> {
        self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))
    }

    pub(super) fn node_mut(&mut self, id: u64) -> Result<&mut NodeInfo, Refusal> {
        self.nodes.get_mut(&id).ok_or(Refusal::UnknownNode(id))
    }

    /// Another node took this one's name and place.
    pub(super) fn superseded(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|old| {
            let heir = |other: &NodeInfo| other.state != NodeState::Removed && other.name == old.name;
            old.state == NodeState::Decommissioning && self.nodes.range(node + 1..).any(|(_, other)| heir(other))
        })
    }

    /// A node asks to be taken in, or says that it is back.
    pub(super) fn join(&mut self, node: Joining, alive: &[Uuid], now_ms: i64) -> Result<Outcome, Refusal> {
        if self.cluster_id.is_nil() || self.nodes.is_empty() {
            return Err(Refusal::NotFounded);
        }
        let (asked, ours) = (node.cluster_id, self.cluster_id);
        if !asked.is_nil() && asked != ours {
            return Err(Refusal::ForeignCluster { asked, ours });
        }
        let known = self.node_of(node.uuid).map(|known| known.id);
        if let Some(id) = known
            && let NodeInfo { state: NodeState::Removed, name, .. } = self.node(id)?
        {
            return Err(Refusal::Removed { node: id, name: name.clone() });
        }
        self.check_unique(&node, alive)?;
        let id = match known {
            Some(id) => self.come_back(id, node, now_ms)?,
            None if asked == ours => return Err(Refusal::UnknownMember(node.uuid)),
            None => self.take_in(node, now_ms)?,
        };
        Ok(Outcome::Node(self.node(id)?.clone()))
    }

    /// No other node that is alive has the name or the address. One that nobody hears from may have had them; one that is on
    /// its way out may be another life of the same machine.
    fn check_unique(&self, node: &Joining, alive: &[Uuid]) -> Result<(), Refusal> {
        // A superseded node that comes back with its old disk is let in: what is on that disk may be needed.
        if self.node_of(node.uuid).is_some_and(|known| self.superseded(known.id)) {
            return Ok(());
        }
        let others = || self.alive_others(node.uuid, alive);
        let by_name = others().find(|other| other.stays() && other.name == node.name);
        let by_address =
            others().find(|other| self.has_addresses(other) && other.addresses.data() == node.addresses.data());
        let (field, value, other) = match (by_name, by_address) {
            (Some(other), _) => ("name", node.name.as_str(), other),
            (None, Some(other)) => ("address", node.addresses.data(), other),
            (None, None) => return Ok(()),
        };
        Err(duplicate(field.into(), value, other))
    }

    /// Returns why a node must not join with these addresses: a live node has one of them, for whichever listener. Two data
    /// listeners with one address are left to [`Command::Join`](super::Command::Join).
    ///
    /// The leader calls this before it proposes the command. Applying the command does not: nodes of the version before apply
    /// the same command, know only the data listener's address, and would admit a node that this version refuses. So two nodes
    /// that join at the same moment with the same address of another listener may both be admitted.
    pub(crate) fn address_conflict(&self, node: Uuid, addresses: &Addresses, alive: &[Uuid]) -> Option<Refusal> {
        if self.node_of(node).is_some_and(|known| self.superseded(known.id)) {
            return None;
        }
        self.alive_others(node, alive).filter(|other| self.has_addresses(other)).find_map(|other| {
            let taken = |(name, address): &(&ListenerName, &str)| {
                other.addresses.iter().any(|(its, has)| has == *address && !(its.is_data() && name.is_data()))
            };
            addresses.iter().find(taken).map(|(name, address)| duplicate(name.field(), address, other))
        })
    }

    /// Nodes with another identity that the controller leader hears from.
    fn alive_others<'a>(&'a self, node: Uuid, alive: &'a [Uuid]) -> impl Iterator<Item = &'a NodeInfo> {
        self.nodes.values().filter(move |other| other.uuid != node && alive.contains(&other.uuid))
    }

    /// The addresses of the node are its own: it is neither removed nor superseded by another on the same machine.
    fn has_addresses(&self, node: &NodeInfo) -> bool {
        node.state != NodeState::Removed && !self.superseded(node.id)
    }

    fn come_back(&mut self, id: u64, node: Joining, now_ms: i64) -> Result<u64, Refusal> {
        let info = self.node_mut(id)?;
        let restarted = info.boot != node.boot;
        let moved = info.zone != node.zone;
        let Joining { name, addresses, zone, version, boot, .. } = node;
        *info = NodeInfo { name, addresses, zone, version, boot, ..info.clone() };
        if restarted && info.state == NodeState::Draining {
            info.state = NodeState::Active;
            self.end_operations_of(id, OperationKind::Drain, OperationState::Done, now_ms);
        }
        if moved {
            self.begin_rebalance(id, now_ms);
        }
        Ok(id)
    }

    fn take_in(&mut self, node: Joining, now_ms: i64) -> Result<u64, Refusal> {
        if self.nodes.values().filter(|other| other.state != NodeState::Removed).count() >= NODES_MAX {
            return Err(Refusal::TooManyNodes(NODES_MAX));
        }
        // Nobody hears from it, or `check_unique` had refused.
        let old = self.nodes.values().filter(|other| other.stays() && other.name == node.name).map(|other| other.id);
        let old: Vec<u64> = old.collect();
        // In a state of the version before, the counter is not there.
        let id = self.next_node.max(self.nodes.keys().last().map_or(1, |last| last + 1));
        self.next_node = id + 1;
        let Joining { uuid, name, addresses, zone, version, boot, .. } = node;
        let state = NodeState::Active;
        let joined_ms = now_ms;
        self.nodes.insert(id, NodeInfo { id, uuid, name, addresses, zone, version, boot, state, joined_ms });
        if old.is_empty() {
            self.begin_rebalance(id, now_ms);
        }
        for old in old {
            self.supersede(old, id, now_ms)?;
        }
        Ok(id)
    }

    fn supersede(&mut self, old: u64, new: u64, now_ms: i64) -> Result<(), Refusal> {
        self.end_operations_of(old, OperationKind::Drain, OperationState::Cancelled, now_ms);
        self.node_mut(old)?.state = NodeState::Decommissioning;
        self.begin(OperationKind::Replace, old, self.partitions_on(old), now_ms);
        for placement in self.placements.values_mut().flatten() {
            // Several nodes may have had the name; the heir takes one place in each partition.
            if placement.replicas.contains(&new) {
                continue;
            }
            if let Some(place) = placement.replicas.iter_mut().find(|node| **node == old) {
                *place = new;
            }
        }
        Ok(())
    }

    /// Lets a node lead, or keeps it from leading.
    pub(super) fn set_node_state(&mut self, id: u64, state: NodeState, now_ms: i64) -> Result<Outcome, Refusal> {
        let rule = match (self.node(id)?.state, state) {
            (NodeState::Active | NodeState::Draining, NodeState::Active | NodeState::Draining) => None,
            (NodeState::Decommissioning | NodeState::Removed, _) => {
                Some("only a node that stays is drained or undrained")
            }
            (_, NodeState::Decommissioning | NodeState::Removed) => Some("a node leaves by an operation"),
        };
        if let Some(rule) = rule {
            return Err(Refusal::NodeState { node: id, state: self.node(id)?.state, rule: rule.into() });
        }
        self.node_mut(id)?.state = state;
        if state == NodeState::Active {
            self.end_operations_of(id, OperationKind::Drain, OperationState::Cancelled, now_ms);
        }
        Ok(Outcome::Node(self.node(id)?.clone()))
    }

    /// Removes a node for good, once no partition needs it; with that the operation that led here is done.
    pub(super) fn remove_node(&mut self, id: u64, now_ms: i64) -> Result<Outcome, Refusal> {
        let state = self.node(id)?.state;
        if matches!(state, NodeState::Active | NodeState::Draining) {
            return Err(Refusal::NodeState {
                node: id,
                state,
                rule: "a node is decommissioned before it is removed".into(),
            });
        }
        let partitions = self.partitions_on(id);
        if partitions > 0 {
            return Err(Refusal::NodeInUse { node: id, partitions });
        }
        self.node_mut(id)?.state = NodeState::Removed;
        for kind in [OperationKind::Decommission, OperationKind::Replace] {
            self.end_operations_of(id, kind, OperationState::Done, now_ms);
        }
        // Whatever files it has, it does not come back with them.
        self.deleted.retain_mut(|deleted| !deleted.reported_by(id));
        let gone = self.node(id)?.clone();
        let removed = self.nodes.values().filter(|node| node.state == NodeState::Removed).map(|node| node.id);
        let removed: Vec<u64> = removed.collect();
        for forgotten in removed.iter().rev().skip(REMOVED_MAX) {
            self.nodes.remove(forgotten);
        }
        Ok(Outcome::Node(gone))
    }
}

fn duplicate(field: String, value: &str, other: &NodeInfo) -> Refusal {
    Refusal::Duplicate { field, value: value.to_owned(), node: other.id, uuid: other.uuid }
}

#[cfg(test)]
mod tests;
