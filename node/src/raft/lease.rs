//! The lease of a leader, and what voters promise for it: why a linearizable read is never answered from the past.
//!
//! A leader answers a read without asking anyone while its *lease* holds: a majority has acknowledged messages that it
//! sent less than [`LEASE`] ago. In return, a voter that acknowledges such a message votes for no other node for
//! [`PROMISE`] = [`LEASE`] + [`MARGIN`], whatever it knows of the leader from other connections: a node heartbeat that is
//! late, a port that refuses connections and a peer that says that it is leaving do not end the promise.
//!
//! # Why this is safe
//!
//! Let the leader L of term t check its lease at time T, measured as every time here on one true clock, and let it hold.
//! Then each voter of some majority has acknowledged a message that L sent at a time s with T - s < LEASE on L's clock.
//! Suppose that another node had been elected in a later term before T. Its majority and that of L have a voter V in
//! common. There are two cases.
//!
//! - V is L itself. L's own vote ends its leadership in the same step, so that it would not have found its lease at T.
//! - V acknowledged L's message at a time a, after L sent it: s <= a. V voted before that, or after it.
//!   - *Before*: V's later term rejects L's message. Where the message was stored before the vote and is acknowledged
//!     after it, [`LeasePromise::acknowledge`] withholds the acknowledgement: it and the vote take the same lock. (An
//!     acknowledgement after the message of a later leader that V did not vote for is withheld as well, for the sake of commits.)
//!   - *After*: no earlier than a + PROMISE on V's clock, and a + PROMISE >= s + LEASE + MARGIN. L holds its lease until
//!     s + LEASE on its own clock. So the vote came after T, provided that L's clock runs at no less than
//!     LEASE / (LEASE + MARGIN) = 2/3 of the rate of V's: clocks of machines differ by less than a thousandth.
//!
//! So at T no later term had a leader, and everything that was acknowledged until T is in L's log, and applied there
//! (a leader acknowledges what it has applied, and serves nothing before it has applied what it found at its election).
//! The caller began the read before T and reads the log after it: T is the point at which the read takes effect. A leader
//! that is paused after T changes nothing about that.
//!
//! What acknowledges: each response to an append or a heartbeat of the group other than "higher vote", a conflict
//! included, and the response to a request to catch up (`Snapshot`). They come on the exchange stream. Node heartbeats do
//! not renew a lease, so they need no promise.
//!
//! The times that this depends on:
//!
//! - L counts from *before* it sent the message: openraft stamps heartbeats when it begins a round and appends when it
//!   builds the request, and `network.rs` sends one append at a time to each replica, so that a response is never taken
//!   for that of a later request.
//! - V counts from after it has processed the message. A voter whose clock stands still only waits longer.
//! - L's clock (`CLOCK_MONOTONIC`, through tokio) stands still while the machine is suspended. [`LeaderLease`] therefore
//!   compares it with `CLOCK_BOOTTIME`, which does not. After a suspension of more than [`SUSPENSION_MIN`] the lease counts
//!   for nothing until a majority has answered a message that was sent after it. MARGIN has room for a shorter one, once.
//!   A hypervisor that stops a machine and hides the time from all its clocks cannot be detected from inside:
//!   `cluster.linearizable-reads: majority` does not depend on clocks.
//! - V keeps its promises over a restart of the group ([`LeasePromise`] outlives it) and of the process
//!   ([`LeasePromise::new`]).
//!
//! Two kinds of election need no wait. The leader that V acknowledged may get V's vote at once: it competes with nobody
//! but itself. A leadership transfer was authorised by the leader, whose openraft serves no reads from then on; it is
//! believed only if it begins a higher term than V's, because one that was delayed may be older than the present leader of
//! an equal term.
//!
//! Nodes of earlier versions make no promise. Until all voters of a group have been upgraded, its leaders' leases are as
//! they were before.
//!
//! Source: Raft dissertation, section 6.4.1 (leases) and section 6.4 (asking a majority).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chronicle_log::mutant;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::config::LinearizableReads;
use crate::host::Suspension;

/// Time since a majority's acknowledged messages were sent within which a leader may serve a linearizable read without
/// another round.
pub(crate) const LEASE: Duration = Duration::from_millis(100);
/// What voters wait longer than a leader relies on, for clocks of different rates and short suspensions.
pub(super) const MARGIN: Duration = Duration::from_millis(50);
/// Time after an acknowledgement within which a voter votes for no other node. Shorter than the shortest silence after
/// which nodes suspect a peer whose process has ended (`peers::liveness::REFUSED_AFTER`): a fail-over does not wait for it.
pub(super) const PROMISE: Duration = LEASE.saturating_add(MARGIN);
/// Shortest suspension of the machine that ends a lease. Longer than the time between two reads of a clock on a busy
/// machine.
const SUSPENSION_MIN: Duration = Duration::from_millis(10);

/// A vote, ordered as openraft orders them: term and raft id of the candidate.
pub(super) type Ballot = (u64, u64);

/// What a replica has promised to leaders as a voter; see the module. It outlives the group: a replica that closes and
/// opens again keeps its promises.
#[derive(Debug)]
pub struct LeasePromise {
    promised: Mutex<PromiseState>,
}

/// The promises, locked: no acknowledgement leaves before this is dropped.
pub(super) struct PromiseState {
    /// Raft id of the leader whose message was acknowledged last; 0: unknown.
    leader: u64,
    /// Until when this replica votes for no other node.
    until: Instant,
    /// The highest vote that was granted.
    granted: Ballot,
}

impl std::fmt::Debug for PromiseState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} until {:?}, vote {:?}", self.leader, self.until, self.granted)
    }
}

impl LeasePromise {
    /// The promises of a replica in a process that started at `started`. Its former process may have acknowledged
    /// messages until then.
    pub fn new(started: Instant) -> Arc<Self> {
        let promised = PromiseState { leader: 0, until: started + PROMISE, granted: (0, 0) };
        Arc::new(Self { promised: Mutex::new(promised) })
    }

    /// Makes the promise that belongs to an acknowledgement, which may leave after this. `leader`: the leader's vote.
    ///
    /// # Errors
    /// The vote that this replica has granted meanwhile to a candidate of a later term: the acknowledgement must not leave.
    pub(super) async fn acknowledge(&self, leader: Ballot) -> Result<(), Ballot> {
        let mut promised = self.promised.lock().await;
        if leader < promised.granted {
            return Err(promised.granted);
        }
        promised.leader = leader.1;
        promised.until = Instant::now() + PROMISE;
        Ok(())
    }

    /// Locks the promises for a vote.
    pub(super) async fn lock(&self) -> MutexGuard<'_, PromiseState> {
        self.promised.lock().await
    }

    /// As [`PromiseState::binds_itself`], and whether the replica is just deciding about a vote.
    pub(super) fn binds_itself(&self, node: u64, alone: bool) -> bool {
        self.promised.try_lock().map_or(true, |promised| promised.binds_itself(node, alone))
    }
}

impl PromiseState {
    /// Whether the replica must not vote for `candidate` now.
    pub(super) fn binds(&self, candidate: u64) -> bool {
        self.leader != candidate && Instant::now() < self.until
    }

    /// Whether the replica on `node` must not become a candidate now. `alone`: it is the only voter, so that its former
    /// process led, or followed a leader that has ended.
    pub(super) fn binds_itself(&self, node: u64, alone: bool) -> bool {
        self.binds(node) && !(alone && self.leader == 0)
    }

    /// Records a granted vote: leaders of earlier terms get no acknowledgement from now on.
    pub(super) fn grant(&mut self, vote: Ballot) {
        self.granted = self.granted.max(vote);
    }
}

/// How a leader proves its leadership for a read; see the module.
#[derive(Debug)]
pub(super) struct LeaderLease {
    reads: LinearizableReads,
    suspension: fn() -> Suspension,
    /// Nanoseconds of suspension of the machine before the last messages that the lease may rely on.
    known_ns: AtomicU64,
}

impl LeaderLease {
    /// `suspension` reads for how long the machine has been suspended.
    pub(super) fn new(reads: LinearizableReads, suspension: fn() -> Suspension) -> Self {
        Self { reads, suspension, known_ns: AtomicU64::new(nanos(suspension().at_least)) }
    }

    /// How old the messages may be that a majority has acknowledged, for a read that begins now; zero: the leader must ask
    /// a majority. With the time for which the machine had been suspended.
    pub(super) fn age_max(&self) -> (Duration, Suspension) {
        let now = (self.suspension)();
        let known = Duration::from_nanos(self.known_ns.load(Ordering::Acquire));
        let suspended = now.at_most > known + SUSPENSION_MIN;
        match self.reads {
            _ if mutant!("any-lease-serves") => (Duration::from_secs(3600), now),
            LinearizableReads::Lease if !suspended => (LEASE, now),
            LinearizableReads::Lease | LinearizableReads::Majority => (Duration::ZERO, now),
        }
    }

    /// A majority has answered a message that was sent after `before` was read.
    pub(super) fn renewed(&self, before: Suspension) {
        self.known_ns.fetch_max(nanos(before.at_least), Ordering::AcqRel);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
