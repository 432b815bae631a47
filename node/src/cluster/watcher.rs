//! Drives heartbeats and elections of a raft group without timers: the node ticks every open group at a fixed interval, and
//! immediately when a peer dies or comes back.
//!
//! A leader sends heartbeats. A follower whose leader is dead becomes a candidate, the highest in rank first, unless the group is
//! resting, that is, needs no leader. A request for votes ends the rest: the replica that sent it may be behind and unable to win,
//! so the replicas that can win must take part.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Cluster;
use crate::host::jitter;
use crate::raft::{HEARTBEAT, Machine, RaftGroup};

/// Interval between two ticks of an open group.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Head start of each replica over the next one when the leader is dead.
const RANK_STEP: Duration = Duration::from_millis(300);

/// Watches one group: the state between two of its ticks.
pub struct Watcher {
    state: Mutex<WatchState>,
}

struct WatchState {
    /// The group needs no leader: everything in the log is applied, and nothing was appended since.
    resting: bool,
    last_heartbeat: Option<Instant>,
    /// When to become a candidate; set when the leader is found dead.
    next_campaign: Option<Instant>,
    /// The leader and the start of its process (boot id), as first seen.
    leader: Option<(u64, u64)>,
}

impl Watcher {
    /// A watcher. `resting`: the group needs no leader until [`Watcher::wake`].
    pub fn new(resting: bool) -> Self {
        let state = WatchState { resting, last_heartbeat: None, next_campaign: None, leader: None };
        Self { state: Mutex::new(state) }
    }

    /// Ends the rest: the group needs a leader.
    pub fn wake(&self) {
        self.state.lock().resting = false;
    }

    /// Starts the rest: the leader has closed the group in an orderly way.
    pub fn rest(&self) {
        self.state.lock().resting = true;
    }

    /// Returns whether the group needs no leader.
    pub fn resting(&self) -> bool {
        self.state.lock().resting
    }

    /// One tick of a group that this node leads. `alone`: the group has no other member.
    pub fn led<M: Machine>(&self, cluster: &Cluster, group: &Arc<RaftGroup<M>>, alone: bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.next_campaign = None;
        state.leader = None;
        if !alone && state.last_heartbeat.is_none_or(|last| now - last >= HEARTBEAT) {
            state.last_heartbeat = Some(now);
            let group = group.clone();
            cluster.consensus.spawn(async move { group.heartbeat().await });
        }
    }

    /// One tick of a group that this node follows, as the replica with this rank (0: becomes a candidate first).
    pub fn followed<M: Machine>(&self, cluster: &Cluster, group: &Arc<RaftGroup<M>>, leader: Option<u64>, rank: u32) {
        let now = Instant::now();
        let liveness = cluster.peers.liveness();
        let mut state = self.state.lock();
        if group.doubt().is_some() {
            let group = group.clone();
            cluster.consensus.spawn(async move {
                if let Err(error) = group.settle_doubt().await {
                    tracing::debug!(group = %group.id(), %error, "cannot settle the doubt about the log's end");
                }
            });
        }
        if let Some(leader) = leader.filter(|leader| *leader != cluster.node()) {
            let boot = liveness.boot_of(leader);
            let restarted = match state.leader {
                Some((same, known)) => same == leader && known != 0 && known != boot,
                None => false,
            };
            state.leader = Some((leader, boot));
            if restarted || !cluster.serves(leader, group.id()) {
                group.lose_leader();
            }
        }
        if leader.is_some() && !group.leader_gone() {
            if group.heard_leader() {
                // If this leader stops without putting the group to rest, another replica must become the leader.
                state.resting = false;
            }
            state.next_campaign = None;
            return;
        }
        if group.take_leader_wanted() {
            state.resting = false;
        }
        if state.resting || group.election_under_way() || group.promised() {
            return;
        }
        let next = *state.next_campaign.get_or_insert(now + RANK_STEP * rank);
        if now < next {
            return;
        }
        state.next_campaign = Some(now + jitter(RANK_STEP * 2));
        let group = group.clone();
        cluster.consensus.spawn(async move {
            match group.campaign().await {
                Ok(true) => tracing::info!(group = %group.id(), "starting election"),
                Ok(false) => {}
                Err(error) => tracing::debug!(group = %group.id(), %error, "cannot start election"),
            }
        });
    }
}
