//! Operations: long-running changes that the controller leader carries out, and that survive a change of that leader.
//!
//! A decommission or a replacement sets the node to `Decommissioning`, and the balancer moves its replicas away; a drain sets it
//! to `Draining`. An operation that ends in any other state than `Done` sets the node to `Active` again; replicas that were
//! moved stay where they are.

use super::Refusal;
use super::balancer::ClusterObservation;
use super::controller_state::{CommandOutcome, ControllerState};
use super::entities::{NodeState, Operation, OperationKind, OperationState, Placement};

/// Maximum number of finished operations that are kept.
const FINISHED_MAX: usize = 50;

impl ControllerState {
    pub(super) fn begin(&mut self, kind: OperationKind, node: u64, total: u32, now_ms: i64) -> Operation {
        let id = self.next_operation;
        self.next_operation += 1;
        let state = OperationState::Running;
        let operation = Operation { id, kind, node, state, started_ms: now_ms, finished_ms: 0, total };
        self.operations.insert(id, operation.clone());
        operation
    }

    fn end(&mut self, id: u64, state: OperationState, now_ms: i64) {
        if let Some(operation) = self.operations.get_mut(&id) {
            operation.state = state;
            operation.finished_ms = now_ms;
        }
        let finished = self.operations.values().filter(|operation| !operation.running());
        let mut finished: Vec<(i64, u64)> = finished.map(|operation| (operation.finished_ms, operation.id)).collect();
        finished.sort_unstable();
        for (_, old) in finished.iter().rev().skip(FINISHED_MAX) {
            self.operations.remove(old);
        }
    }

    pub(super) fn end_operations_of(&mut self, node: u64, kind: OperationKind, state: OperationState, now_ms: i64) {
        let running = self.running().filter(|operation| operation.node == node && operation.kind == kind);
        let ids: Vec<u64> = running.map(|operation| operation.id).collect();
        for id in ids {
            self.end(id, state.clone(), now_ms);
        }
    }

    /// Returns the running operations.
    pub(super) fn running(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values().filter(|operation| operation.running())
    }

    /// Starts a rebalance for a node that is new or moved to another zone, unless one is running.
    pub(super) fn begin_rebalance(&mut self, node: u64, now_ms: i64) {
        if !self.topics.is_empty() && !self.running().any(|operation| operation.kind == OperationKind::Rebalance) {
            self.begin(OperationKind::Rebalance, node, self.surplus(), now_ms);
        }
    }

    /// Returns how many replicas nodes have above a fair share.
    fn surplus(&self) -> u32 {
        let loads = self.loads();
        let active = self.nodes.values().filter(|node| node.state == NodeState::Active);
        let counts: Vec<u32> = active.map(|node| loads.replicas(node.id)).collect();
        let share = counts.iter().sum::<u32>().div_ceil(counts.len().max(1) as u32);
        counts.iter().map(|count| count.saturating_sub(share)).sum()
    }

    /// Checks that a node can be removed from the cluster.
    ///
    /// # Errors
    /// [`Refusal::NodeState`], [`Refusal::OperationRunning`], [`Refusal::LastNode`], [`Refusal::TooFewNodes`].
    pub(super) fn can_do_without(&self, node: u64) -> Result<(), Refusal> {
        let info = self.node(node)?;
        if !info.stays() {
            let rule = "must be active or draining to be decommissioned or replaced".into();
            return Err(Refusal::NodeState { node, state: info.state, rule });
        }
        // A superseded node does not reduce capacity, and may wait long for data that was lost with its disk.
        let leaving = |other: &&Operation| {
            matches!(other.kind, OperationKind::Decommission | OperationKind::Replace) && !self.superseded(other.node)
        };
        if let Some(other) = self.running().find(leaving) {
            return Err(Refusal::OperationRunning { id: other.id, kind: other.kind, node: other.node });
        }
        let others = self.nodes.values().filter(|other| other.id != node && other.state == NodeState::Active);
        let remaining = others.count();
        if remaining == 0 {
            return Err(Refusal::LastNode(node));
        }
        let kept = |all: &Vec<Placement>| all.iter().map(|placement| placement.replicas.len()).max().unwrap_or(0);
        let topics = self.topics.values().map(|topic| (self.placements.get(&topic.id).map_or(0, kept), &topic.name));
        match topics.max() {
            Some((replicas, topic)) if replicas > remaining => {
                Err(Refusal::TooFewNodes { node, topic: topic.clone(), replicas, remaining })
            }
            _ => Ok(()),
        }
    }

    /// Starts an operation; returns the running one if there is one of the same kind for the same node.
    pub(super) fn start_operation(
        &mut self,
        kind: OperationKind,
        node: u64,
        now_ms: i64,
    ) -> Result<CommandOutcome, Refusal> {
        let same = |operation: &&Operation| {
            operation.kind == kind && (operation.node == node || kind == OperationKind::Rebalance)
        };
        if let Some(running) = self.running().find(same) {
            return Ok(CommandOutcome::Operation(running.clone()));
        }
        let total = match kind {
            OperationKind::Decommission | OperationKind::Replace => {
                self.can_do_without(node)?;
                self.end_operations_of(node, OperationKind::Drain, OperationState::Cancelled, now_ms);
                self.node_mut(node)?.state = NodeState::Decommissioning;
                self.partitions_on(node)
            }
            OperationKind::Drain => {
                self.set_node_state(node, NodeState::Draining, now_ms)?;
                self.loads().leaders(node)
            }
            OperationKind::Rebalance => {
                if node != 0 {
                    self.node(node)?;
                }
                self.surplus()
            }
        };
        Ok(CommandOutcome::Operation(self.begin(kind, node, total, now_ms)))
    }

    /// Ends an operation.
    pub(super) fn finish_operation(
        &mut self,
        id: u64,
        state: OperationState,
        now_ms: i64,
    ) -> Result<CommandOutcome, Refusal> {
        let operation = self.operations.get(&id).ok_or(Refusal::UnknownOperation(id))?;
        if !operation.running() || state == OperationState::Running {
            return Err(Refusal::OperationEnded(id));
        }
        let ended = Operation { state: state.clone(), finished_ms: now_ms, ..operation.clone() };
        if state != OperationState::Done
            && let Some(info) = self.nodes.get_mut(&ended.node)
            && info.state != NodeState::Removed
            && ended.kind != OperationKind::Rebalance
        {
            info.state = NodeState::Active;
        }
        self.end(id, state, now_ms);
        Ok(CommandOutcome::Operation(ended))
    }

    /// Cancels an operation.
    pub(super) fn cancel_operation(&mut self, id: u64, now_ms: i64) -> Result<CommandOutcome, Refusal> {
        let operation = self.operations.get(&id).ok_or(Refusal::UnknownOperation(id))?;
        if operation.kind == OperationKind::Replace && operation.running() && self.superseded(operation.node) {
            let rule = "cannot be cancelled: another node has superseded the node".into();
            return Err(Refusal::NotCancellable { id, rule });
        }
        self.finish_operation(id, OperationState::Cancelled, now_ms)
    }
}

/// Returns how many partitions an operation still has to move, or to transfer leadership of. `led`: how many partitions its node
/// leads now, which the metadata does not contain.
pub fn remaining(state: &ControllerState, operation: &Operation, led: u32) -> u32 {
    match operation.kind {
        _ if !operation.running() => 0,
        OperationKind::Decommission | OperationKind::Replace => state.partitions_on(operation.node),
        OperationKind::Drain => led,
        OperationKind::Rebalance => state.surplus(),
    }
}

/// Returns what an operation waits for, human-readable; empty: nothing.
pub fn waiting_for(state: &ControllerState, operation: &Operation, observed: &ClusterObservation) -> String {
    let leaving = matches!(operation.kind, OperationKind::Decommission | OperationKind::Replace);
    if !operation.running() || !leaving {
        return String::new();
    }
    let node = operation.node;
    let mut on_node = 0;
    for topic in state.topics.values() {
        for (partition, placement) in state.placements.get(&topic.id).into_iter().flatten().enumerate() {
            if !placement.holds(node) {
                continue;
            }
            on_node += 1;
            let here = format!("topic {} partition {partition}", topic.name);
            let (voters, live) = (placement.voters.len(), observed.live(&placement.voters));
            if !observed.has_majority(placement) {
                return format!("{here}: {live} of {voters} voters are alive: needs {}", voters / 2 + 1);
            }
            let dead =
                placement.replicas.iter().find(|node| !placement.voters.contains(node) && !observed.is_alive(**node));
            if let Some(dead) = dead {
                return format!("{here}: waiting for node {dead}, which gets a replica and is not alive");
            }
            if placement.replicas.contains(&node) && observed.targets(state).all(|to| placement.replicas.contains(&to))
            {
                return format!("{here}: every other node that is active and alive already has a replica");
            }
        }
    }
    match on_node {
        0 if observed.controller_voters.contains(&node) => {
            "waiting for another node to replace it as a voter of the controller group".into()
        }
        0 => String::new(),
        moving => format!("waiting for {moving} partitions to be moved off the node"),
    }
}

#[cfg(test)]
mod tests;
