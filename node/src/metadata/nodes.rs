//! The members of the cluster: bootstrap, joins, permanent removal.
//!
//! A node is identified by its UUID, which is in its data directory; name and addresses may change. Raft ids increase
//! and are never reused. When a node has a new UUID and the name of a node that is not alive, it is that node with a
//! wiped or replaced disk: it replaces the old node in every partition, and the old node is decommissioned
//! ("superseded").

use uuid::Uuid;

use super::Refusal;
use super::controller_state::{CommandOutcome, ControllerState};
use super::entities::{Joining, NodeInfo, NodeState, OperationKind, OperationState};
use crate::model::{Addresses, ListenerName};

/// Most nodes of a cluster, without removed ones. Every node is a member of the controller group.
pub(crate) const NODES_MAX: usize = 256;

/// Most removed nodes whose entries are kept. A node whose entry was deleted is still refused: it reports that it is a
/// member of this cluster, and the cluster does not contain it.
const REMOVED_MAX: usize = 1000;

impl ControllerState {
    /// Bootstraps the cluster, or adds the nodes of a cluster that was bootstrapped by a version without nodes in the
    /// metadata.
    pub(super) fn found(&mut self, cluster_id: Uuid, nodes: Vec<NodeInfo>) -> CommandOutcome {
        if self.cluster_id.is_nil() {
            self.cluster_id = cluster_id;
        }
        if self.cluster_id == cluster_id && self.nodes.is_empty() {
            self.nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
            self.next_node = self.nodes.keys().last().map_or(0, |last| last + 1);
            // Deletions of the previous version list no nodes: all current nodes report them.
            for deleted in &mut self.deleted {
                deleted.nodes = self.nodes.keys().copied().collect();
            }
        }
        CommandOutcome::Done(None)
    }

    /// Returns the node that an operator names: by UUID, or by name when that is unique. A name selects a node that
    /// stays before one that is decommissioning, and that before a removed one.
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

    /// Returns the node with this UUID, removed ones included.
    pub fn node_of(&self, uuid: Uuid) -> Option<&NodeInfo> {
        self.nodes.values().find(|node| node.uuid == uuid)
    }

    /// Returns why a peer with this raft id is not a member, when that is certain: it was removed. A peer with an id
    /// that is not assigned here yet joined after the metadata applied on this node, and may lead the group from which
    /// this node gets the rest.
    pub(crate) fn departed(&self, id: u64) -> Option<Refusal> {
        let removed = |name: &str| Refusal::Removed { node: id, name: name.to_owned() };
        match self.nodes.get(&id) {
            Some(node) => (node.state == NodeState::Removed).then(|| removed(&node.name)),
            // Ids increase: this id was assigned, and its entry has been deleted.
            None => (id < self.next_node).then(|| removed("its name is no longer stored")),
        }
    }

    pub(super) fn node(&self, id: u64) -> Result<&NodeInfo, Refusal> {
        self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))
    }

    pub(super) fn node_mut(&mut self, id: u64) -> Result<&mut NodeInfo, Refusal> {
        self.nodes.get_mut(&id).ok_or(Refusal::UnknownNode(id))
    }

    /// Returns whether another node replaced this one under the same name.
    pub(super) fn superseded(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|old| {
            let heir = |other: &NodeInfo| other.state != NodeState::Removed && other.name == old.name;
            old.state == NodeState::Decommissioning && self.nodes.range(node + 1..).any(|(_, other)| heir(other))
        })
    }

    /// Applies a join: admits a new node, or updates a member that restarted.
    pub(super) fn join(&mut self, node: Joining, alive: &[Uuid], now_ms: i64) -> Result<CommandOutcome, Refusal> {
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
        Ok(CommandOutcome::Node(self.node(id)?.clone()))
    }

    /// Checks that no other live node has the name or the address. A node that is not alive may have had them; a node
    /// that is decommissioning may be an earlier installation of the same machine.
    fn check_unique(&self, node: &Joining, alive: &[Uuid]) -> Result<(), Refusal> {
        // A superseded node that returns with its old disk is admitted: the data on that disk may be needed.
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

    /// Returns why a node must not join with these addresses: a live node has one of them, for any listener. Two data
    /// listeners with one address are left to [`ControllerCommand::Join`](super::ControllerCommand::Join).
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

    /// Returns the other nodes from which the controller leader receives heartbeats.
    fn alive_others<'a>(&'a self, node: Uuid, alive: &'a [Uuid]) -> impl Iterator<Item = &'a NodeInfo> {
        self.nodes.values().filter(move |other| other.uuid != node && alive.contains(&other.uuid))
    }

    /// Returns whether the node still owns its addresses: it is neither removed nor superseded by another node on the
    /// same machine.
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
        // The node with the same name is not alive, otherwise `check_unique` would have refused.
        let old = self.nodes.values().filter(|other| other.stays() && other.name == node.name).map(|other| other.id);
        let old: Vec<u64> = old.collect();
        // A state of the previous version has no counter.
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
            // Several nodes may have had the name; the new node replaces one of them in each partition.
            if placement.replicas.contains(&new) {
                continue;
            }
            if let Some(place) = placement.replicas.iter_mut().find(|node| **node == old) {
                *place = new;
            }
        }
        Ok(())
    }

    /// Allows or forbids a node to lead.
    pub(super) fn set_node_state(&mut self, id: u64, state: NodeState, now_ms: i64) -> Result<CommandOutcome, Refusal> {
        let rule = match (self.node(id)?.state, state) {
            (NodeState::Active | NodeState::Draining, NodeState::Active | NodeState::Draining) => None,
            (NodeState::Decommissioning | NodeState::Removed, _) => {
                Some("only an active or draining node can be drained or undrained")
            }
            (_, NodeState::Decommissioning | NodeState::Removed) => {
                Some("decommissioning a node requires an operation")
            }
        };
        if let Some(rule) = rule {
            return Err(Refusal::NodeState { node: id, state: self.node(id)?.state, rule: rule.into() });
        }
        self.node_mut(id)?.state = state;
        if state == NodeState::Active {
            self.end_operations_of(id, OperationKind::Drain, OperationState::Cancelled, now_ms);
        }
        Ok(CommandOutcome::Node(self.node(id)?.clone()))
    }

    /// Removes a node permanently, when no partition needs it. This completes its decommission or replacement.
    pub(super) fn remove_node(&mut self, id: u64, now_ms: i64) -> Result<CommandOutcome, Refusal> {
        let state = self.node(id)?.state;
        if matches!(state, NodeState::Active | NodeState::Draining) {
            return Err(Refusal::NodeState {
                node: id,
                state,
                rule: "must be decommissioned before it is removed".into(),
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
        self.generations.remove(&id);
        // A removed node cannot return with its files, so its report is no longer needed.
        self.deleted.retain_mut(|deleted| !deleted.reported_by(id));
        let gone = self.node(id)?.clone();
        let removed = self.nodes.values().filter(|node| node.state == NodeState::Removed).map(|node| node.id);
        let removed: Vec<u64> = removed.collect();
        for forgotten in removed.iter().rev().skip(REMOVED_MAX) {
            self.nodes.remove(forgotten);
        }
        Ok(CommandOutcome::Node(gone))
    }
}

fn duplicate(field: String, value: &str, other: &NodeInfo) -> Refusal {
    Refusal::Duplicate { field, value: value.to_owned(), node: other.id, uuid: other.uuid }
}

#[cfg(test)]
mod tests;
