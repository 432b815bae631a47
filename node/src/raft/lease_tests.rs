//! The lease of a leader and the promises of voters: no read is answered from the past.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use chronicle_log::disk::{DiskOperation, Fault, FaultRule, FaultyDisk, RealDisk};
use chronicle_log::{Log, LogConfig, LogId, Store, StoreConfig};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::append_response::Outcome;
use chronicle_proto::internal::raft_frame::Message;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::time::Instant;

use super::lease::PROMISE;
use super::tests::{GrantsPreVotes, Journal, LOG, NoPeers, lead, open, propose, started};
use super::{LeasePromise, RaftGroup, Transport};
use crate::config::LinearizableReads;
use crate::host::Suspension;
use crate::peers::AskError;

/// Node 1 of a group of nodes 1, 2 and 3, with the promises of an earlier instance.
async fn voter(store: &Arc<Store>, transport: Arc<dyn Transport>, promise: &Arc<LeasePromise>) -> Voter {
    let log = store.open_log(LOG, LogConfig::default()).unwrap();
    let mut start = started(store, &log, 1, &[1, 2, 3], transport);
    start.promise = promise.clone();
    Voter { group: RaftGroup::start(start, Journal::default()).await.unwrap(), log }
}

struct Voter {
    group: RaftGroup<Journal>,
    log: Arc<Log>,
}

impl Voter {
    /// Sends it a heartbeat of a leader; returns its response.
    async fn heartbeat(&self, term: u64, leader: u64) -> Outcome {
        let vote = Some(proto::Vote { term, node: leader, committed: true });
        match self.group.handle(leader, Message::Append(proto::AppendRequest { vote, ..Default::default() })).await {
            Message::AppendDone(done) => done.outcome.unwrap(),
            other => panic!("no response to an append: {other:?}"),
        }
    }

    /// Asks for its vote, as a candidate that has everything; returns whether it was granted.
    async fn ask(&self, term: u64, candidate: u64, how: Ask) -> bool {
        let vote = Some(proto::Vote { term, node: candidate, committed: false });
        let last = self.group.last_position().await;
        let (pre_vote, leadership_transfer) = (how == Ask::PreVote, how == Ask::Transfer);
        let request = proto::VoteRequest { vote, last, leadership_transfer, pre_vote };
        match self.group.handle(candidate, Message::Vote(request)).await {
            Message::VoteDone(done) => done.granted,
            other => panic!("no answer to a vote: {other:?}"),
        }
    }

    async fn close(self) {
        self.group.shutdown().await;
        self.log.close().unwrap();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    PreVote,
    Vote,
    Transfer,
}

/// The promises of a replica in a process that has run for a while.
fn no_promise() -> Arc<LeasePromise> {
    LeasePromise::new(Instant::now() - PROMISE)
}

/// Node heartbeats say that the leader is dead (`NoPeers`), and its raft messages still arrive: they are on another
/// connection.
#[tokio::test]
async fn a_voter_elects_nobody_else_inside_the_lease_that_it_has_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let voter = voter(&store, Arc::new(NoPeers), &no_promise()).await;
    let before = Instant::now();
    assert_eq!(voter.heartbeat(1, 2).await, Outcome::Success(true));
    for how in [Ask::PreVote, Ask::Vote] {
        let granted = voter.ask(2, 3, how).await;
        assert!(!granted || before.elapsed() >= PROMISE, "{how:?} inside the lease");
    }
    assert!(voter.ask(2, 2, Ask::PreVote).await, "the leader competes with nobody");
    while !voter.ask(2, 3, Ask::PreVote).await {
        tokio::task::yield_now().await;
    }
    assert!(before.elapsed() >= PROMISE);
    assert!(voter.ask(2, 3, Ask::Vote).await);
    voter.close().await;
    store.close().unwrap();
}

#[tokio::test]
async fn an_append_that_was_stored_before_a_vote_is_not_acknowledged_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    // The group's own task runs whenever one of the two waits for it.
    for term in 0..20 {
        let voter = voter(&store, Arc::new(NoPeers), &no_promise()).await;
        let (leader, candidate) = (2 * term + 1, 2 * term + 2);
        let begun = Instant::now();
        let (outcome, granted) = tokio::join!(voter.heartbeat(leader, 2), voter.ask(candidate, 3, Ask::Vote));
        let renewed = !matches!(outcome, Outcome::HigherVote(_));
        assert!(!(renewed && granted) || begun.elapsed() >= PROMISE, "round {term}: {outcome:?} and a vote");
        voter.close().await;
    }
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_was_stored_before_a_later_leader_came_is_not_acknowledged_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open(Arc::new(disk.clone()), dir.path(), StoreConfig::default()).unwrap();
    let voter = voter(&store, Arc::new(NoPeers), &no_promise()).await;
    assert_eq!(voter.heartbeat(1, 2).await, Outcome::Success(true));
    let entry = proto::LogEntry { term: 1, leader: 2, index: 1, kind: 2, ..Default::default() };
    let append = proto::AppendRequest {
        vote: Some(proto::Vote { term: 1, node: 2, committed: true }),
        previous: voter.group.last_position().await,
        entries: vec![entry],
        ..Default::default()
    };
    let hang = disk.add(FaultRule::new(DiskOperation::Sync, Fault::Hang).path("/logs/"));
    let later = async {
        while voter.log.position().next_index < 2 {
            tokio::task::yield_now().await;
        }
        // Another majority has elected node 3, which does not have the entry.
        let mut heartbeat = std::pin::pin!(voter.heartbeat(2, 3));
        let early = futures::poll!(heartbeat.as_mut());
        disk.remove(hang);
        match early {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => heartbeat.await,
        }
    };
    let (answer, outcome) = tokio::join!(voter.group.handle(2, Message::Append(append)), later);
    assert_eq!(outcome, Outcome::Success(true));
    let Message::AppendDone(done) = answer else { panic!("no response to an append: {answer:?}") };
    let higher = Outcome::HigherVote(proto::Vote { term: 2, node: 3, committed: true });
    assert_eq!(done.outcome, Some(higher), "node 2 must not commit it any more");
    voter.close().await;
    store.close().unwrap();
}

#[tokio::test]
async fn a_replica_does_not_stand_inside_the_lease_that_it_has_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let voter = voter(&store, Arc::new(GrantsPreVotes::default()), &no_promise()).await;
    let before = Instant::now();
    assert_eq!(voter.heartbeat(1, 2).await, Outcome::Success(true));
    let stood = voter.group.campaign().await.unwrap();
    assert!(!stood || before.elapsed() >= PROMISE);
    while !voter.group.campaign().await.unwrap() {
        tokio::task::yield_now().await;
    }
    assert!(before.elapsed() >= PROMISE);
    assert_eq!(voter.group.status().term, 2);
    assert!(matches!(voter.heartbeat(1, 2).await, Outcome::HigherVote(_)));
    voter.close().await;
    store.close().unwrap();
}

#[tokio::test]
async fn a_transfer_is_believed_only_if_it_is_not_older_than_the_leader() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let voter = voter(&store, Arc::new(NoPeers), &no_promise()).await;
    let before = Instant::now();
    assert_eq!(voter.heartbeat(2, 2).await, Outcome::Success(true));
    // The leader of term 1 authorised it; its message was delayed until node 2 led in term 2.
    let granted = voter.ask(2, 3, Ask::Transfer).await;
    assert!(!granted || before.elapsed() >= PROMISE);
    assert!(voter.ask(3, 3, Ask::Transfer).await, "it is authorised by the leader of term 2");
    voter.close().await;
    store.close().unwrap();
}

#[tokio::test]
async fn a_promise_is_kept_by_the_next_instance_and_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let promise = no_promise();
    let first = voter(&store, Arc::new(NoPeers), &promise).await;
    let before = Instant::now();
    assert_eq!(first.heartbeat(1, 2).await, Outcome::Success(true));
    first.close().await;
    let second = voter(&store, Arc::new(NoPeers), &promise).await;
    let granted = second.ask(2, 3, Ask::Vote).await;
    assert!(!granted || before.elapsed() >= PROMISE, "a replica that was closed and opened again");
    second.close().await;
    let started = Instant::now();
    let third = voter(&store, Arc::new(NoPeers), &LeasePromise::new(started)).await;
    let granted = third.ask(3, 3, Ask::Vote).await;
    assert!(!granted || started.elapsed() >= PROMISE, "a process that was started again");
    third.close().await;
    store.close().unwrap();
}

/// Delivers to the other groups of a test, and counts appends.
struct CountingWire {
    me: u64,
    groups: Arc<Mutex<BTreeMap<u64, Arc<RaftGroup<Journal>>>>>,
    appends: AtomicU64,
}

impl Transport for CountingWire {
    fn ask(&self, to: u64, _: LogId, message: Message, _: Duration) -> BoxFuture<'_, Result<Message, AskError>> {
        Box::pin(async move {
            if matches!(message, Message::Append(_)) {
                self.appends.fetch_add(1, Ordering::SeqCst);
            }
            let group = self.groups.lock().get(&to).cloned();
            match group {
                Some(group) => Ok(group.handle(self.me, message).await),
                None => Err(AskError::Unreachable(to, "it is cut off".into())),
            }
        })
    }

    fn alive(&self, _: u64) -> bool {
        true
    }
}

/// Nodes 1 and 2, of which 1 leads.
struct Pair {
    leader: Arc<RaftGroup<Journal>>,
    follower: Arc<RaftGroup<Journal>>,
    wire: Arc<CountingWire>,
    disks: Vec<(TempDir, Arc<Store>, Arc<Log>)>,
}

impl Pair {
    async fn new(reads: LinearizableReads, suspension: fn() -> Suspension) -> Self {
        let groups: Arc<Mutex<BTreeMap<u64, Arc<RaftGroup<Journal>>>>> = Arc::default();
        let (mut members, mut disks) = (Vec::new(), Vec::new());
        for me in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(&dir);
            let log = store.open_log(LOG, LogConfig::default()).unwrap();
            let wire = Arc::new(CountingWire { me, groups: groups.clone(), appends: AtomicU64::new(0) });
            let mut start = started(&store, &log, me, &[1, 2], wire.clone());
            (start.reads, start.suspension) = (reads, suspension);
            let group = Arc::new(RaftGroup::start(start, Journal::default()).await.unwrap());
            groups.lock().insert(me, group.clone());
            members.push((group, wire));
            disks.push((dir, store, log));
        }
        let (follower, _) = members.pop().unwrap();
        let (leader, wire) = members.pop().unwrap();
        let term = lead(&leader).await;
        propose(&leader, term, "a").await.unwrap();
        Self { leader, follower, wire, disks }
    }

    /// Reads; returns whether the other node was asked.
    async fn read_asks(&self) -> bool {
        let before = self.wire.appends.load(Ordering::SeqCst);
        self.leader.read_index().await.unwrap();
        self.wire.appends.load(Ordering::SeqCst) > before
    }

    async fn close(self) {
        self.wire.groups.lock().clear();
        self.leader.shutdown().await;
        self.follower.shutdown().await;
        for (_dir, store, log) in self.disks {
            log.close().unwrap();
            store.close().unwrap();
        }
    }
}

static SUSPENDED_MS: AtomicU64 = AtomicU64::new(0);

/// A clock that the test moves.
fn suspended() -> Suspension {
    let suspended = Duration::from_millis(SUSPENDED_MS.load(Ordering::SeqCst));
    Suspension { at_least: suspended, at_most: suspended }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_machine_was_suspended_asks_before_it_reads() {
    let pair = Pair::new(LinearizableReads::Lease, suspended).await;
    // A slow machine may need longer than a lease between two reads.
    while pair.read_asks().await {}
    SUSPENDED_MS.fetch_add(60_000, Ordering::SeqCst);
    assert!(pair.read_asks().await, "its clock stood still: the lease is older than it seems");
    while pair.read_asks().await {}
    SUSPENDED_MS.fetch_add(60_000, Ordering::SeqCst);
    pair.wire.groups.lock().remove(&2);
    let read = pair.leader.read_index().await;
    assert!(read.is_err(), "nobody confirms that it still leads: {read:?}");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_majority_every_read_asks() {
    let pair = Pair::new(LinearizableReads::Majority, Suspension::default).await;
    for read in 0..10 {
        assert!(pair.read_asks().await, "read {read}");
    }
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_confirmed_for_the_term_that_was_asked_about() {
    let pair = Pair::new(LinearizableReads::Lease, Suspension::default).await;
    let term = super::LeaderTerm { term: pair.leader.term(), leader: 1 };
    pair.leader.confirm(term).await.unwrap();
    let earlier = super::LeaderTerm { term: term.term - 1, leader: 1 };
    assert!(pair.leader.confirm(earlier).await.is_err(), "another node may have led since");
    assert!(pair.follower.confirm(term).await.is_err());
    pair.close().await;
}
