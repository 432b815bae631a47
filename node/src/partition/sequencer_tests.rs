//! What a sequencer answers once its node is cut off from the other replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chronicle_client::tcp_connector;
use chronicle_log::disk::RealDisk;
use chronicle_log::{EntryKind, Log, LogConfig, LogId, Store, StoreConfig};
use chronicle_proto::internal::raft_frame::Message;
use chronicle_records::{BatchBuilder, Compression, ProducerLimits};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use super::confirming::Confirming;
use super::environment::Environment;
use super::segment_ends::SegmentEnds;
use super::sequencer::{Append, AppendAnswer, Reply, Sequencer, SequencerFailure};
use super::state_machine::{AppliedState, PartitionMachine};
use crate::cluster::Cluster;
use crate::config::{Config, LinearizableReads, Live};
use crate::host::Suspension;
use crate::model::{Expectation, PartitionError, Topic, TopicSettings};
use crate::peers::{AskError, Liveness, LivenessConfig, Peers};
use crate::raft::{
    ControlEntry, LEASE, LeaderTerm, LeasePromise, RaftGroup, RaftGroupConfig, RaftMember, Role, Transport,
};

const LOG: LogId = LogId { topic: Uuid::from_u128(9), partition: 0 };

type ReplicaGroups = Arc<Mutex<BTreeMap<u64, Arc<RaftGroup<PartitionMachine>>>>>;

/// Delivers to the groups in the map.
struct CutWire {
    me: u64,
    groups: ReplicaGroups,
}

impl Transport for CutWire {
    fn ask(&self, to: u64, _: LogId, message: Message, _: Duration) -> BoxFuture<'_, Result<Message, AskError>> {
        Box::pin(async move {
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

/// The sequencer of node 1, whose follower is node 2.
struct Led {
    queue: mpsc::UnboundedSender<Append>,
    groups: ReplicaGroups,
    members: Vec<Arc<RaftGroup<PartitionMachine>>>,
    running: tokio::task::JoinHandle<()>,
    failure: SequencerFailure,
    leader: LeaderTerm,
    env: Arc<Environment>,
    shared: Arc<AppliedState>,
    disks: Vec<(TempDir, Arc<Store>, Arc<Log>)>,
}

impl Led {
    async fn new() -> Self {
        let groups = ReplicaGroups::default();
        let (mut members, mut disks, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for node in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(Arc::new(RealDisk), dir.path(), StoreConfig::default()).unwrap();
            let log = store.open_log(LOG, LogConfig::default()).unwrap();
            let (machine, state) = PartitionMachine::new(log.clone(), ProducerLimits::default(), None);
            let start = RaftGroupConfig {
                store: store.clone(),
                log: log.clone(),
                id: LOG,
                node,
                transport: Arc::new(CutWire { me: node, groups: groups.clone() }),
                founders: Some([1, 2].map(|id| (id, RaftMember::default())).into()),
                election_timeout: Duration::from_secs(1),
                reads: LinearizableReads::Lease,
                promise: LeasePromise::new(Instant::now() - Duration::from_secs(1)),
                suspension: Suspension::default,
                metrics: Default::default(),
            };
            let group = Arc::new(RaftGroup::start(start, machine).await.unwrap());
            groups.lock().insert(node, group.clone());
            members.push(group);
            states.push(state);
            disks.push((dir, store, log));
        }
        let leader = elected(&members[0]).await;
        let (_, store, log) = &disks[0];
        let env = Arc::new(Environment::new(Arc::new(cluster(store.clone())), |_| None));
        let failure = SequencerFailure::new(env.clone(), log.clone());
        let (queue, receiver) = mpsc::unbounded_channel();
        let shared = states.swap_remove(0);
        let sequencer = Sequencer {
            group: members[0].clone(),
            leader,
            log: log.clone(),
            shared: shared.clone(),
            queue: receiver,
            slots: Arc::new(Semaphore::new(4)),
            budget: Arc::new(Semaphore::new(1 << 16)),
            entry_bytes_max: 1 << 20,
            versioned_keys_max: 100,
            failure: failure.clone(),
            confirming: Confirming::start(members[0].clone(), leader, failure.failed()),
            ends: SegmentEnds::new(env.clone(), members[0].clone(), shared.clone(), log, leader),
            metrics: Default::default(),
        };
        let running = tokio::spawn(sequencer.run());
        Self { queue, groups, members, running, failure, leader, env, shared, disks }
    }

    /// Appends one record with a key, as producer 1.
    async fn append(&self, sequence: i32, expectation: Option<Expectation>) -> AppendAnswer {
        let mut builder = BatchBuilder::new(Compression::None).with_producer(1, 0, sequence);
        builder.push(1, Some(b"k"), Some(b"v"), std::iter::empty()).unwrap();
        let batch = builder.build().unwrap();
        let header = chronicle_records::parse_header(&batch).unwrap();
        let (reply, answer) = Reply::new();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let append = Append { batch, header, expectation, reply, permit, queued: Instant::now(), trace: None };
        self.queue.send(append).unwrap();
        answer.await.unwrap()
    }

    async fn close(self) {
        self.failure.set(PartitionError::Unavailable("the test ends".into()));
        self.running.await.unwrap();
        self.groups.lock().clear();
        for group in &self.members {
            group.shutdown().await;
        }
        drop(self.members);
        for (_dir, store, log) in self.disks {
            log.close().unwrap();
            store.close().unwrap();
        }
    }
}

fn cluster(store: Arc<Store>) -> Cluster {
    let second = Duration::from_secs(1);
    let liveness = LivenessConfig { interval: second, suspect_after: 3 * second, start: Default::default() };
    let liveness = Liveness::new(liveness, None, Handle::current());
    let peers = Peers::new(tcp_connector(), None, Handle::current(), 1 << 20, liveness);
    Cluster::new(store, Handle::current(), peers, Live::new(Arc::new(Config::default())))
}

async fn elected(group: &RaftGroup<PartitionMachine>) -> LeaderTerm {
    let mut roles = group.roles();
    loop {
        group.campaign().await.unwrap();
        if let Role::Leader(term) = roles.now() {
            group.settle(term).await.unwrap();
            return term;
        }
        let now = roles.now();
        let _ = tokio::time::timeout(LEASE, roles.other(now)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequencer_that_is_cut_off_rejects_nothing_for_what_its_log_contains() {
    let led = Led::new().await;
    assert_eq!(led.append(0, None).await.unwrap().base_offset, 0);
    assert_eq!(led.append(1, None).await.unwrap().base_offset, 1);
    let version = |version| Some(Expectation::KeyVersion { key: "k".into(), version });
    let out_of_order = led.append(7, None).await;
    assert!(matches!(out_of_order, Err(PartitionError::OutOfOrderSequence { expected: 2, .. })), "{out_of_order:?}");
    assert!(led.append(1, None).await.unwrap().duplicate);
    let conflict = led.append(2, version(0)).await;
    assert!(matches!(conflict, Err(PartitionError::KeyConflict { current: 1, .. })), "{conflict:?}");

    led.groups.lock().remove(&2);
    let cut = Instant::now();
    // From when on another node may lead, and may have acknowledged sequences 2 to 7 and a newer version.
    for (sequence, expectation) in [(7, None), (1, None), (2, version(0)), (2, Some(Expectation::NextOffset(9)))] {
        loop {
            let asked = cut.elapsed();
            let answer = led.append(sequence, expectation.clone()).await;
            let cause = match &answer {
                Err(PartitionError::OutcomeUnknown(cause)) => Some(&**cause),
                Err(error) => Some(error),
                Ok(_) => None,
            };
            let retriable = |error: &PartitionError| {
                matches!(
                    error,
                    PartitionError::NotLeader { .. } | PartitionError::NoLeader | PartitionError::Unavailable(_)
                )
            };
            if cause.is_some_and(retriable) {
                break;
            }
            assert!(asked < LEASE, "{answer:?}, {asked:?} after it was cut off");
        }
    }
    led.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_end_alike_once_it_is_known_that_every_member_reads_their_ends() {
    let led = Led::new().await;
    let settings = TopicSettings { segment_bytes: 65_536, ..TopicSettings::default() };
    let (name, id) = ("t".to_owned(), LOG.topic);
    let topic = Topic { name, id, partitions: 1, replication_factor: 2, settings, created_ms: 0 };
    Arc::make_mut(&mut *led.env.cluster.metadata.write()).topics.insert("t".into(), topic);
    let ends = || {
        let (env, group, shared) = (led.env.clone(), led.members[0].clone(), led.shared.clone());
        SegmentEnds::new(env, group, shared, &led.disks[0].2, led.leader)
    };
    let kinds = |log: &Log| -> Vec<EntryKind> {
        log.read(0, u64::MAX, usize::MAX).unwrap().iter().map(|stored| stored.entry.kind).collect()
    };
    // Nothing is known of the other member: it may run an earlier release.
    let before = ends();
    for _ in 0..5 {
        before.before_entry(40_000).await.unwrap();
    }
    led.append(0, None).await.unwrap();
    assert!(!kinds(&led.disks[0].2).contains(&EntryKind::SegmentEnd) && !led.shared.has_control_entries());

    // A group that has control entries has only members that read them.
    led.members[0].propose(led.leader, ControlEntry::SegmentEnd { time_ms: 1 }.into(), |_| {}).await.unwrap();
    led.append(1, None).await.unwrap();
    let after = ends();
    for sequence in 2..5 {
        after.before_entry(40_000).await.unwrap();
        led.append(sequence, None).await.unwrap();
    }
    let (one, two) = (&led.disks[0].2, &led.disks[1].2);
    while two.position().next_index < one.position().next_index {
        tokio::task::yield_now().await;
    }
    let bounds = |log: &Log| -> Vec<(u64, u64)> {
        log.flush().unwrap();
        log.segments().iter().map(|segment| (segment.base_index, segment.next_index)).collect()
    };
    assert_eq!(bounds(one).len(), 4, "{:?}", kinds(one));
    assert_eq!((bounds(one), kinds(one)), (bounds(two), kinds(two)));
    led.close().await;
}
