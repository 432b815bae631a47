//! A replica whose log was cut when it was opened: what it may have acknowledged is neither lost nor denied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chronicle_log::debug::{SegmentFile, Stretch};
use chronicle_log::disk::MemoryDisk;
use chronicle_log::{Log, LogConfig, LogId, Store, StoreConfig};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::tests::{Journal, LOG, NoPeers, lead, propose, started};
use super::{LeaderTerm, RaftGroup, Role, Transport};
use crate::peers::AskError;

type Reachable = Arc<Mutex<BTreeMap<u64, Arc<RaftGroup<Journal>>>>>;

/// Delivers to the replicas that run.
struct Direct {
    me: u64,
    running: Reachable,
}

impl Transport for Direct {
    fn ask(&self, to: u64, _: LogId, message: Message, _: Duration) -> BoxFuture<'_, Result<Message, AskError>> {
        Box::pin(async move {
            let (me, group) = (self.alive(self.me), self.running.lock().get(&to).cloned());
            match group {
                Some(group) if me => Ok(group.handle(self.me, message).await),
                _ => Err(AskError::Unreachable(to, "it is away".into())),
            }
        })
    }

    fn alive(&self, node: u64) -> bool {
        self.running.lock().contains_key(&node)
    }
}

/// One of three replicas, running.
struct Member {
    me: u64,
    disk: MemoryDisk,
    store: Arc<Store>,
    log: Arc<Log>,
    group: Arc<RaftGroup<Journal>>,
    running: Reachable,
}

fn opened(disk: &MemoryDisk) -> (Arc<Store>, Arc<Log>) {
    // No mark vouches for the last entries.
    let never = Duration::from_secs(3600);
    let config = StoreConfig { mark_interval: never, idle_mark_delay: never, ..StoreConfig::default() };
    let store = Store::open(Arc::new(disk.clone()), Path::new("/data"), config).unwrap();
    let log = store.open_log(LOG, LogConfig::default()).unwrap();
    (store, log)
}

impl Member {
    async fn start(me: u64, voters: &[u64], disk: MemoryDisk, running: &Reachable) -> Self {
        let (store, log) = opened(&disk);
        let wire = Arc::new(Direct { me, running: running.clone() });
        let start = started(&store, &log, me, voters, wire);
        let group = Arc::new(RaftGroup::start(start, Journal::default()).await.unwrap());
        let member = Self { me, disk, store, log, group, running: running.clone() };
        member.connect();
        member
    }

    fn connect(&self) {
        self.running.lock().insert(self.me, self.group.clone());
    }

    fn cut_off(&self) {
        self.running.lock().remove(&self.me);
    }

    /// Ends its process. Returns the disk as it was then.
    async fn kill(self) -> MemoryDisk {
        let disk = self.disk.fork();
        self.cut_off();
        self.group.shutdown().await;
        let _ = self.log.close();
        let _ = self.store.close();
        disk
    }

    async fn restart(self) -> Self {
        let (me, running) = (self.me, self.running.clone());
        Self::start(me, &VOTERS, self.kill().await, &running).await
    }

    /// Waits until it has what `leader` has.
    async fn catch_up(&self, leader: &Self) {
        while self.group.last_position().await != leader.group.last_position().await {
            tokio::task::yield_now().await;
        }
        self.log.flush().unwrap();
    }

    /// Waits until nobody has promised a former leader not to vote.
    async fn leases_end(&self) {
        let running: Vec<_> = self.running.lock().values().cloned().collect();
        for voter in running {
            while voter.promised() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Stands for election until it leads.
    async fn elected(&self) -> LeaderTerm {
        loop {
            self.leases_end().await;
            self.group.campaign().await.unwrap();
            if let Role::Leader(term) = self.group.roles().now() {
                self.group.settle(term).await.unwrap();
                return term;
            }
        }
    }

    /// Stands for election several times; returns whether it leads then.
    async fn stands(&self) -> bool {
        self.leases_end().await;
        for _ in 0..5 {
            self.group.campaign().await.unwrap();
        }
        matches!(self.group.roles().now(), Role::Leader(_))
    }

    async fn settle(&self) {
        while !self.group.settle_doubt().await.unwrap() {
            tokio::task::yield_now().await;
        }
    }
}

const VOTERS: [u64; 3] = [1, 2, 3];

fn segment() -> PathBuf {
    Path::new("/data/logs").join(LOG.to_string()).join("00000000000000000000.log")
}

/// What is damaged of the last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flip {
    Payload,
    Header,
}

fn flip_last(disk: &MemoryDisk, what: Flip) {
    let file = SegmentFile::open(disk, &segment()).unwrap();
    let mut last = 0;
    for stretch in file.stretches() {
        if let Stretch::Frame { position, .. } = stretch.unwrap() {
            last = position;
        }
    }
    let at = match what {
        Flip::Header => last + 20,
        Flip::Payload => last + 72,
    };
    let mut bytes = disk.contents(&segment()).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 1;
    disk.overwrite(&segment(), &bytes).unwrap();
}

/// Three replicas, led by node 1, which all hold "a"; nodes 1 and those in `with_b` hold "b" as well, the last entry, which is
/// acknowledged.
async fn three(with_b: &[u64]) -> ([Member; 3], LeaderTerm, Reachable) {
    let running = Reachable::default();
    let one = Member::start(1, &VOTERS, MemoryDisk::new(), &running).await;
    let two = Member::start(2, &VOTERS, MemoryDisk::new(), &running).await;
    let three = Member::start(3, &VOTERS, MemoryDisk::new(), &running).await;
    let term = lead(&one.group).await;
    propose(&one.group, term, "a").await.unwrap();
    for follower in [&two, &three] {
        follower.catch_up(&one).await;
    }
    if !with_b.contains(&3) {
        three.cut_off();
    }
    assert_eq!(propose(&one.group, term, "b").await.unwrap(), "a,b");
    for follower in [&two, &three].into_iter().filter(|member| with_b.contains(&member.me)) {
        follower.catch_up(&one).await;
    }
    one.log.flush().unwrap();
    ([one, two, three], term, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_last_entry_and_a_lost_leader_elect_nobody_without_the_entry() {
    for what in [Flip::Payload, Flip::Header] {
        let ([one, two, three], _, running) = three(&[2]).await;
        let (one, two) = (one.kill().await, two.kill().await);
        flip_last(&two, what);
        let two = Member::start(2, &VOTERS, two, &running).await;
        three.connect();
        let doubt = two.group.doubt().expect("its last entry was cut");
        assert_eq!(doubt.from, 3);
        for member in [&three, &two, &three] {
            assert!(!member.stands().await, "{what:?}: node {} leads without the acknowledged entry", member.me);
        }
        // Nor after another restart, which finds a log that is intact.
        let two = two.restart().await;
        assert_eq!(two.group.doubt(), Some(doubt));
        assert!(!three.stands().await && !two.stands().await, "{what:?}");

        let one = Member::start(1, &VOTERS, one, &running).await;
        let term = one.elected().await;
        assert_eq!(propose(&one.group, term, "c").await.unwrap(), "a,b,c", "{what:?}");
        two.settle().await;
        two.catch_up(&one).await;
        // It is settled for good, and the replica leads again.
        one.cut_off();
        let two = two.restart().await;
        assert_eq!(two.group.doubt(), None, "{what:?}");
        let term = two.elected().await;
        assert_eq!(propose(&two.group, term, "d").await.unwrap(), "a,b,c,d", "{what:?}");
        for member in [one, two, three] {
            member.kill().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_voters_are_back_the_longest_log_wins() {
    let ([one, two, three], _, running) = three(&[2]).await;
    let (one, two, three) = (one.kill().await, two.kill().await, three.kill().await);
    flip_last(&two, Flip::Header);
    let two = Member::start(2, &VOTERS, two, &running).await;
    let three = Member::start(3, &VOTERS, three, &running).await;
    let one = Member::start(1, &VOTERS, one, &running).await;
    assert!(!two.group.settle_doubt().await.unwrap(), "node 1 has more");
    assert!(!two.stands().await && !three.stands().await, "they do not have the acknowledged entry");
    let term = one.elected().await;
    assert_eq!(propose(&one.group, term, "c").await.unwrap(), "a,b,c");
    two.settle().await;
    for member in [one, two, three] {
        member.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn torn_writes_of_all_replicas_are_settled_by_asking_once() {
    let ([one, two, three], _, running) = three(&[2, 3]).await;
    let disks = [one.kill().await, two.kill().await, three.kill().await];
    let mut members = Vec::new();
    for (me, disk) in VOTERS.into_iter().zip(disks) {
        let mut bytes = disk.contents(&segment()).unwrap();
        bytes.resize(bytes.len() + 500, 0);
        disk.overwrite(&segment(), &bytes).unwrap();
        members.push(Member::start(me, &VOTERS, disk, &running).await);
    }
    for member in &members {
        assert!(member.group.doubt().is_some());
        assert!(member.group.settle_doubt().await.unwrap(), "node {}", member.me);
    }
    let term = members[2].elected().await;
    assert_eq!(propose(&members[2].group, term, "c").await.unwrap(), "a,b,c");
    for member in members {
        member.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_restarted_settles_nothing_by_its_stored_vote() {
    let ([one, two, three], _, running) = three(&[2, 3]).await;
    three.cut_off();
    let (one, two) = (one.kill().await, two.kill().await);
    flip_last(&one, Flip::Payload);
    flip_last(&two, Flip::Payload);
    let one = Member::start(1, &VOTERS, one, &running).await;
    let two = Member::start(2, &VOTERS, two, &running).await;
    for member in [&two, &one, &two] {
        assert!(!member.stands().await, "node {}: only node 3 has the acknowledged entry", member.me);
        assert!(member.group.doubt().is_some(), "node {}", member.me);
    }
    three.connect();
    let term = three.elected().await;
    assert_eq!(propose(&three.group, term, "c").await.unwrap(), "a,b,c");
    one.settle().await;
    two.settle().await;
    for member in [one, two, three] {
        member.kill().await;
    }
}

/// The leader's answer says more than the length of the log: with an unreadable header, nothing else would settle it while
/// one replica is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_leader_settles_it_although_a_third_replica_is_away() {
    let ([one, two, three], term, running) = three(&[2]).await;
    let two = two.kill().await;
    let mut bytes = two.contents(&segment()).unwrap();
    bytes.resize(bytes.len() + 50_000, 0);
    two.overwrite(&segment(), &bytes).unwrap();
    let two = Member::start(2, &VOTERS, two, &running).await;
    assert!(two.group.doubt().unwrap().to() > 100, "many entries fit into what was cut");
    assert_eq!(propose(&one.group, term, "c").await.unwrap(), "a,b,c");
    two.settle().await;
    for member in [one, two, three] {
        member.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_in_doubt_votes_by_the_term_and_the_index_of_what_it_lost() {
    let ([one, two, three], term, _) = three(&[2]).await;
    for member in [one, three] {
        member.kill().await;
    }
    for what in [Flip::Payload, Flip::Header] {
        let disk = two.disk.fork();
        flip_last(&disk, what);
        let (store, log) = opened(&disk);
        let start = started(&store, &log, 2, &VOTERS, Arc::new(NoPeers));
        let group = RaftGroup::start(start, Journal::default()).await.unwrap();
        // The header tells that one entry was lost; otherwise there may have been a second one.
        let to = if what == Flip::Payload { 3 } else { 4 };
        assert_eq!(group.doubt().map(|doubt| (doubt.from, doubt.to())), Some((3, to)));
        let ask = async |last: (u64, u64, u64), pre_vote: bool, leadership_transfer: bool| {
            let vote = Some(proto::Vote { term: term.term + 1, node: 3, committed: false });
            let (term, leader, index) = last;
            let last = Some(proto::LogPosition { term, leader, index });
            let request = proto::VoteRequest { vote, last, leadership_transfer, pre_vote };
            match group.handle(3, Message::Vote(request)).await {
                Message::VoteDone(done) => done.granted,
                other => panic!("no answer to a vote: {other:?}"),
            }
        };
        let (t, l) = (term.term, term.leader);
        for shorter in [(t, l, to - 1), (t - 1, l, 1000), (0, 0, 1000)] {
            for (pre_vote, transfer) in [(true, false), (false, false), (false, true)] {
                assert!(!ask(shorter, pre_vote, transfer).await, "{what:?} {shorter:?} {pre_vote} {transfer}");
            }
        }
        assert!(ask((t, l, to), true, false).await && ask((t + 1, 3, 1), true, false).await, "{what:?}");
        assert!(ask((t, l, to), false, false).await, "{what:?}");
        // Neither a vote nor a later term changes what was lost.
        assert_eq!(group.doubt().map(|doubt| doubt.to()), Some(to));
        let transfer =
            proto::TransferRequest { from: Some(proto::Vote { term: t, node: l, committed: true }), to: 2, last: None };
        let answer = group.handle(1, Message::Transfer(transfer)).await;
        let Message::TransferDone(answer) = answer else { panic!("{answer:?}") };
        assert!(answer.error.contains("in doubt"), "{}", answer.error);

        group.shutdown().await;
        log.close().unwrap();
        store.close().unwrap();
    }
    two.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_goes_on_with_what_it_has() {
    let running = Reachable::default();
    let member = Member::start(1, &[1], MemoryDisk::new(), &running).await;
    let term = member.elected().await;
    for text in ["a", "b"] {
        propose(&member.group, term, text).await.unwrap();
    }
    let disk = member.kill().await;
    flip_last(&disk, Flip::Payload);
    let member = Member::start(1, &[1], disk, &running).await;
    assert!(member.group.doubt().is_some());
    let term = member.elected().await;
    assert_eq!(propose(&member.group, term, "c").await.unwrap(), "a,c");
    assert_eq!(member.group.doubt(), None);
    member.kill().await;
}
