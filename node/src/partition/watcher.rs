//! What a raft group has instead of timers: the node looks at it often, and at once when a peer dies or comes back.
//!
//! A leader says that it leads. A follower whose leader is gone stands for election, the highest in rank first, unless nobody
//! needs a leader. Somebody does as soon as a replica asks for votes: one that is behind cannot win, and those that could must
//! not rest.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;

use super::Environment;
use crate::raft::{Group, HEARTBEAT, Machine};

/// How often an open group is looked at.
pub const EVERY: Duration = Duration::from_millis(100);
/// Head start of each replica over the next one when a leader is gone.
const RANK_STEP: Duration = Duration::from_millis(300);

/// What is remembered between two looks at one group.
pub struct Watcher {
    state: Mutex<State>,
}

struct State {
    /// Nobody needs a leader: the log ends here and is applied, and nobody has appended since.
    resting: bool,
    last_heartbeat: Option<Instant>,
    /// When to stand for election; set when the leader is found gone.
    next_campaign: Option<Instant>,
    /// The leader and the start of its process, as first seen.
    leader: Option<(u64, u64)>,
}

impl Watcher {
    /// Of a group that needs no leader, if `resting`, until it is asked to lead.
    pub fn new(resting: bool) -> Self {
        let state = State { resting, last_heartbeat: None, next_campaign: None, leader: None };
        Self { state: Mutex::new(state) }
    }

    /// Somebody needs a leader.
    pub fn wake(&self) {
        self.state.lock().resting = false;
    }

    /// The leader has gone to sleep in good order.
    pub fn rest(&self) {
        self.state.lock().resting = true;
    }

    /// Nobody needs a leader.
    pub fn resting(&self) -> bool {
        self.state.lock().resting
    }

    /// One look at a group that this node leads.
    pub fn led<M: Machine>(&self, env: &Environment, group: &Arc<Group<M>>, alone: bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.next_campaign = None;
        state.leader = None;
        if !alone && state.last_heartbeat.is_none_or(|last| now - last >= HEARTBEAT) {
            state.last_heartbeat = Some(now);
            let group = group.clone();
            env.consensus.spawn(async move { group.heartbeat().await });
        }
    }

    /// One look at a group that this node follows, as the replica of this rank (0: the first to lead).
    pub fn followed<M: Machine>(&self, env: &Environment, group: &Arc<Group<M>>, leader: Option<u64>, rank: u32) {
        let now = Instant::now();
        let liveness = env.peers.liveness();
        let mut state = self.state.lock();
        if let Some(leader) = leader.filter(|leader| *leader != env.node()) {
            let boot = liveness.boot_of(leader);
            let restarted = match state.leader {
                Some((same, known)) => same == leader && known != 0 && known != boot,
                None => false,
            };
            state.leader = Some((leader, boot));
            if restarted || !liveness.alive(leader) {
                group.lose_leader();
            }
        }
        if leader.is_some() && !group.leader_gone() {
            if group.heard_leader() {
                // When this leader ends without a good-night, somebody must follow it.
                state.resting = false;
            }
            state.next_campaign = None;
            return;
        }
        if group.take_leader_wanted() {
            state.resting = false;
        }
        if state.resting || group.election_under_way() {
            return;
        }
        let next = *state.next_campaign.get_or_insert(now + RANK_STEP * rank);
        if now < next {
            return;
        }
        state.next_campaign = Some(now + jitter(RANK_STEP * 2));
        let group = group.clone();
        env.consensus.spawn(async move {
            match group.campaign().await {
                Ok(true) => tracing::info!(group = %group.id(), "stands for election"),
                Ok(false) => {}
                Err(error) => tracing::debug!(group = %group.id(), %error, "no election"),
            }
        });
    }
}

/// A duration between half of it and one and a half.
#[expect(clippy::disallowed_methods, reason = "jitter; a simulation replaces the source of randomness as a whole")]
pub(crate) fn jitter(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.5..1.5))
}
