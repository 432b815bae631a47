//! What a node does for the controller group from time to time; most of it only on the leader.
//!
//! Everywhere: heartbeats and elections ([`crate::cluster::Watcher`]), and addresses of peers as agreed. On the leader: the
//! members of the controller group itself, and the balancer's next commands.

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
    BalancerConfig, Command, ControllerState, NodeState, Operation, OperationKind, OperationState, Outcome,
    controller_voters, plan,
};
use crate::peers::Known;
use crate::raft::Role;

/// How often the leader plans when nothing has changed.
const PLAN_EVERY: Duration = Duration::from_millis(200);
/// A new leader first hears who is alive.
const PLAN_AFTER: Duration = Duration::from_secs(2);
/// Entries that a learner of the controller group may lack and still become a voter.
const NEARLY: u64 = 16;

pub(super) async fn run(controller: Arc<Controller>, stop: CancellationToken) {
    let mut tick = interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = controller.cluster.peers.liveness().changes();
    let mut duties = Duties { controller, led_since: None, planned: None, work: None };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
            // Ends only with the process.
            _ = changes.changed() => {}
        }
        duties.look();
    }
    if let Some(work) = duties.work {
        // Without a majority it would wait for ever. What it had begun, the next leader goes on with.
        work.abort();
        let _ = work.await;
    }
}

struct Duties {
    controller: Arc<Controller>,
    /// Since when this node leads.
    led_since: Option<Instant>,
    planned: Option<Instant>,
    /// The leader's work under way: one at a time, beside the looks, which must not wait.
    work: Option<tokio::task::JoinHandle<()>>,
}

impl Duties {
    fn look(&mut self) {
        let controller = &self.controller;
        controller.look_after();
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
        let now = Instant::now();
        let busy = self.work.as_ref().is_some_and(|work| !work.is_finished());
        let leads = matches!(controller.group.roles().now(), Role::Leader(_));
        if !leads {
            self.led_since = None;
            controller.calm.store(false, Ordering::Relaxed);
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
        let calm = now - since >= PLAN_AFTER;
        controller.calm.store(calm, Ordering::Relaxed);
        self.work = Some(tokio::spawn(async move {
            if let Err(error) = controller.lead_round(calm).await {
                tracing::debug!(error, "the controller's work goes on later");
            }
        }));
    }
}

impl Controller {
    /// One round of the leader's work. `calm`: it has led long enough to know who is alive.
    async fn lead_round(&self, calm: bool) -> Result<(), String> {
        if let Err(error) = self.members(calm).await {
            tracing::debug!(error, "members of the controller group are not where they should be yet");
        }
        if !calm {
            return Ok(());
        }
        let state = self.state();
        let observed = self.observed();
        let cluster = &self.cluster.config().cluster;
        let config = BalancerConfig {
            moves_max: cluster.moves_max as usize,
            replace_dead_after_ms: cluster.replace_dead_after_ms,
        };
        for command in plan(&state, &observed, &config, now_ms()) {
            tracing::info!(?command, "balancer");
            match self.command(&command).await.map_err(|e| e.to_string())? {
                Outcome::Refused(refusal) => tracing::warn!(%refusal, "the balancer's command is refused"),
                _ => continue,
            }
        }
        self.leave_leadership(&state, &observed.alive).await
    }

    /// Raft ids of the nodes that are alive, this one included.
    pub(crate) fn alive(&self) -> BTreeSet<u64> {
        self.state().nodes.keys().copied().filter(|id| self.cluster.alive(*id)).collect()
    }

    /// Takes nodes into the group, gives and takes votes, and removes nodes that are gone for good.
    async fn members(&self, calm: bool) -> Result<(), String> {
        let state = self.state();
        let status = self.group.status();
        if !status.membership_committed {
            return Err("the members are changing".into());
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
        if !calm {
            return Ok(());
        }
        let max = self.cluster.config().cluster.voters as usize;
        let wanted = controller_voters(&state, &self.observed(), max);
        // A leader that fell in the middle of a change left both sets of voters in force: whoever leads now ends it.
        if (wanted == status.voters && !status.joint) || wanted.is_empty() {
            return Ok(());
        }
        let last = status.last.unwrap_or(0);
        let behind = wanted.iter().filter(|id| !status.voters.contains(id)).find(|id| {
            **id != self.cluster.node() && status.matched.get(id).copied().flatten().is_none_or(|at| at + NEARLY < last)
        });
        if let Some(id) = behind {
            return Err(format!("node {id} is behind in the controller group"));
        }
        tracing::info!(voters = ?wanted, "voters of the controller group change");
        self.group.change_voters_retain(wanted).await.map_err(|e| e.to_string())
    }

    /// The operation that drains this node, once the node leads nothing any more.
    fn drained(&self) -> Option<u64> {
        let me = self.cluster.node();
        let state = self.state();
        let drains = |operation: &&Operation| {
            operation.kind == OperationKind::Drain && operation.node == me && operation.running()
        };
        let operation = state.operations.values().find(drains)?.id;
        (self.cluster.led.load(Ordering::Relaxed) == 0).then_some(operation)
    }

    /// Says that this node leads nothing any more.
    async fn finish_drain(&self) {
        let Some(id) = self.drained() else { return };
        let command = Command::FinishOperation { id, state: OperationState::Done, now_ms: now_ms() };
        if let Err(error) = self.command_again(&command).await {
            tracing::debug!(%error, "the end of a drain is not noted yet");
        }
    }

    /// A node that is drained or leaves leads the controller group no longer than it must.
    async fn leave_leadership(&self, state: &ControllerState, alive: &BTreeSet<u64>) -> Result<(), String> {
        let me = self.cluster.node();
        if state.nodes.get(&me).is_none_or(|node| node.state == NodeState::Active) {
            return Ok(());
        }
        match self.successor(state, alive) {
            Some(to) => {
                tracing::info!(to, "leadership of the controller group is handed over");
                self.hand_over(to).await.map_err(|e| e.to_string())
            }
            None => Ok(()),
        }
    }

    /// The voter that is best to lead the controller group instead of this node.
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

    /// The first command of a cluster, on whoever of its founders leads first.
    pub(crate) async fn init(&self, command: Command) -> Result<(), String> {
        self.command_again(&command).await.map(|_| ()).map_err(|e| e.to_string())
    }
}
