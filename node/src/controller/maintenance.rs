//! The controller's maintenance loop, which runs on every node.
//!
//! On every node it drives heartbeats and elections ([`crate::cluster::Watcher`]), and updates the addresses of peers from the
//! committed metadata. On the leader it also changes the members of the controller group, and proposes the balancer's next commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Controller;
use crate::cluster::{WATCH_INTERVAL, member};
use crate::host::now_ms;
use crate::metadata::{
    BalancerConfig, CommandOutcome, ControllerCommand, ControllerState, NodeState, Operation, OperationKind,
    OperationState, controller_voters, plan,
};
use crate::peers::Known;
use crate::raft::Role;

/// How often the leader plans when nothing has changed.
const PLAN_EVERY: Duration = Duration::from_millis(200);
/// How long a new leader waits for heartbeats before it plans, so that it knows which nodes are alive.
const PLAN_AFTER: Duration = Duration::from_secs(2);
/// Entries that a learner of the controller group may lack and still become a voter.
const NEARLY: u64 = 16;

pub(super) async fn run(controller: Arc<Controller>, stop: CancellationToken) {
    let mut tick = interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = controller.cluster.peers.liveness().changes();
    let mut maintenance = Maintenance { controller, led_since: None, planned: None, work: None };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
            // Ends only with the process.
            _ = changes.changed() => {}
        }
        maintenance.tick();
    }
    if let Some(work) = maintenance.work {
        // Without a majority it would wait forever. The next leader continues what it has started.
        work.abort();
        let _ = work.await;
    }
}

/// State of the loop between two ticks.
struct Maintenance {
    controller: Arc<Controller>,
    /// When this node became the leader; `None`: it does not lead.
    led_since: Option<Instant>,
    planned: Option<Instant>,
    /// The running task of the leader: one at a time, separate from the ticks, which must not wait.
    work: Option<tokio::task::JoinHandle<()>>,
}

impl Maintenance {
    fn tick(&mut self) {
        let controller = &self.controller;
        controller.tick();
        let state = controller.state();
        let known: BTreeMap<u64, Known> = state
            .nodes
            .values()
            .filter(|node| node.state != NodeState::Removed)
            .map(|node| (node.id, Known { name: node.name.clone(), address: node.addresses.data().to_owned() }))
            .collect();
        if !known.is_empty() {
            controller.cluster.peers.set_known(&known);
        }
        let me = controller.cluster.node();
        for (node, agreed) in state.generations.iter().filter(|(node, _)| **node != me) {
            controller.cluster.peers.liveness().generations().learn(*node, *agreed);
        }
        let now = Instant::now();
        let busy = self.work.as_ref().is_some_and(|work| !work.is_finished());
        let leads = matches!(controller.group.roles().now(), Role::Leader(_));
        if !leads {
            self.led_since = None;
            controller.warmed_up.store(false, Ordering::Relaxed);
        }
        if busy || self.planned.is_some_and(|planned| now - planned < PLAN_EVERY) {
            return;
        }
        self.planned = Some(now);
        let controller = controller.clone();
        if !leads {
            if controller.drained().is_some() {
                self.work = Some(tokio::spawn(async move { controller.finish_drain().await }));
            }
            return;
        }
        let since = *self.led_since.get_or_insert(now);
        let warmed_up = now - since >= PLAN_AFTER;
        controller.warmed_up.store(warmed_up, Ordering::Relaxed);
        self.work = Some(tokio::spawn(async move {
            if let Err(error) = controller.lead_round(warmed_up).await {
                tracing::debug!(error, "controller maintenance failed, retrying");
            }
        }));
    }
}

impl Controller {
    /// One round of the leader's maintenance. `warmed_up`: it has led long enough to know which nodes are alive.
    async fn lead_round(&self, warmed_up: bool) -> Result<(), String> {
        // A new leader may not have applied yet what was committed before.
        self.read_index().await.map_err(|e| e.to_string())?;
        if let Err(error) = self.members(warmed_up).await {
            tracing::debug!(error, "cannot change members of the controller group yet");
        }
        if !warmed_up {
            return Ok(());
        }
        let state = self.state();
        self.agree_on_generations(&state).await?;
        let observed = self.observed();
        let cluster = &self.cluster.config().cluster;
        let config = BalancerConfig {
            moves_max: cluster.moves_max as usize,
            replace_dead_after_ms: cluster.replace_dead_after_ms,
        };
        for command in plan(&state, &observed, &config, now_ms()) {
            tracing::info!(?command, "proposing balancer command");
            match self.command(&command).await.map_err(|e| e.to_string())? {
                CommandOutcome::Refused(refusal) => tracing::warn!(%refusal, "balancer command rejected"),
                _ => continue,
            }
        }
        self.leave_leadership(&state, &observed.alive).await
    }

    /// Proposes the generations of data directories that the nodes have shown: at each start of a node, and once it is dead. What
    /// a node shows in between is stored by each node that hears it (`runtime/generation.rs`): an entry of this group for it
    /// would be a reason to raise the generations again.
    async fn agree_on_generations(&self, state: &ControllerState) -> Result<(), String> {
        let generations = self.cluster.peers.liveness().generations();
        let mut shown = generations.seen();
        shown.insert(self.cluster.node(), generations.own());
        for (node, generation) in shown {
            let member = state.nodes.get(&node).is_some_and(|info| info.state != NodeState::Removed);
            let news = match state.generations.get(&node) {
                Some(agreed) if agreed.boot == generation.boot => {
                    !self.cluster.alive(node) && generation.number > agreed.number
                }
                Some(agreed) => generation.number > agreed.number,
                None => generation.number > 0,
            };
            if member && news && state.nodes.len() > 1 {
                let command = ControllerCommand::NodeGeneration { node, generation };
                self.command(&command).await.map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    /// Raft ids of the nodes that are alive, this one included.
    pub(crate) fn alive(&self) -> BTreeSet<u64> {
        self.state().nodes.keys().copied().filter(|id| self.cluster.alive(*id)).collect()
    }

    /// Adds nodes to the group as learners, changes the voters, and removes nodes that were permanently removed.
    async fn members(&self, warmed_up: bool) -> Result<(), String> {
        let state = self.state();
        let status = self.group.status();
        if !status.membership_committed {
            return Err("the last change of members is not committed yet".into());
        }
        for node in state.nodes.values().filter(|node| node.state != NodeState::Removed && !status.joint) {
            if !status.voters.contains(&node.id) && !status.learners.contains(&node.id) {
                self.group.add_learner(node.id, member(Some(node))).await.map_err(|e| e.to_string())?;
                return Ok(());
            }
        }
        let removed = |id: &&u64| state.nodes.get(id).is_some_and(|node| node.state == NodeState::Removed);
        let gone: BTreeSet<u64> = status.learners.iter().filter(removed).copied().collect();
        if !gone.is_empty() && !status.joint {
            self.group.remove_learners(gone).await.map_err(|e| e.to_string())?;
        }
        if !warmed_up {
            return Ok(());
        }
        let max = self.cluster.config().cluster.voters as usize;
        let wanted = controller_voters(&state, &self.observed(), max);
        // A leader that failed during a change left both sets of voters in effect: the next leader completes the change.
        if (wanted == status.voters && !status.joint) || wanted.is_empty() {
            return Ok(());
        }
        let last = status.last.unwrap_or(0);
        let behind = wanted.iter().filter(|id| !status.voters.contains(id)).find(|id| {
            **id != self.cluster.node() && status.matched.get(id).copied().flatten().is_none_or(|at| at + NEARLY < last)
        });
        if let Some(id) = behind {
            return Err(format!("node {id} lags behind in the controller group"));
        }
        tracing::info!(voters = ?wanted, "changing voters of the controller group");
        self.group.change_voters_retain(wanted).await.map_err(|e| e.to_string())
    }

    /// The operation that drains this node, once the node leads no partition.
    fn drained(&self) -> Option<u64> {
        let me = self.cluster.node();
        let state = self.state();
        let drains = |operation: &&Operation| {
            operation.kind == OperationKind::Drain && operation.node == me && operation.running()
        };
        let operation = state.operations.values().find(drains)?.id;
        (self.cluster.led.load(Ordering::Relaxed) == 0).then_some(operation)
    }

    /// Records the end of this node's drain.
    async fn finish_drain(&self) {
        let Some(id) = self.drained() else { return };
        let command = ControllerCommand::FinishOperation { id, state: OperationState::Done, now_ms: now_ms() };
        if let Err(error) = self.command_again(&command).await {
            tracing::debug!(%error, "cannot record the end of the drain, retrying");
        }
    }

    /// Transfers leadership of the controller group when this node is draining or leaving.
    async fn leave_leadership(&self, state: &ControllerState, alive: &BTreeSet<u64>) -> Result<(), String> {
        let me = self.cluster.node();
        if state.nodes.get(&me).is_none_or(|node| node.state == NodeState::Active) {
            return Ok(());
        }
        match self.successor(state, alive) {
            Some(to) => {
                tracing::info!(to, "transferring leadership of the controller group");
                self.hand_over(to).await.map_err(|e| e.to_string())
            }
            None => Ok(()),
        }
    }

    /// Returns the best voter to lead the controller group instead of this node: alive, active, with the longest log.
    pub(crate) fn successor(&self, state: &ControllerState, alive: &BTreeSet<u64>) -> Option<u64> {
        let status = self.group.status();
        let me = self.cluster.node();
        let active = |id: &u64| state.nodes.get(id).is_some_and(|node| node.state == NodeState::Active);
        status
            .voters
            .iter()
            .copied()
            .filter(|id| *id != me && alive.contains(id) && active(id))
            .max_by_key(|id| status.matched.get(id).copied().flatten())
    }

    /// Carries out the first command of a new cluster, on the first leader among its initial members.
    pub(crate) async fn init(&self, command: ControllerCommand) -> Result<(), String> {
        self.command_again(&command).await.map(|_| ()).map_err(|e| e.to_string())
    }
}
