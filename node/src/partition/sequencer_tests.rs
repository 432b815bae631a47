//! What a sequencer answers once its node is cut off from the other replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chronicle_client::tcp_connector;
use chronicle_log::disk::RealDisk;
use chronicle_log::{Log, LogConfig, LogId, Store, StoreConfig};
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
use super::sequencer::{Append, AppendAnswer, Reply, Sequencer, SequencerFailure};
use super::state_machine::PartitionMachine;
use crate::cluster::Cluster;
use crate::config::{Config, LinearizableReads, Live};
use crate::host::Suspension;
use crate::model::{Expectation, PartitionError};
use crate::peers::{AskError, Liveness, LivenessConfig, Peers};
use crate::raft::{LEASE, LeaderTerm, LeasePromise, RaftGroup, RaftGroupConfig, RaftMember, Role, Transport};

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
        let failure = SequencerFailure::new(env, log.clone());
        let (queue, receiver) = mpsc::unbounded_channel();
        let sequencer = Sequencer {
            group: members[0].clone(),
            leader,
            log: log.clone(),
            shared: states.swap_remove(0),
            queue: receiver,
            slots: Arc::new(Semaphore::new(4)),
            budget: Arc::new(Semaphore::new(1 << 16)),
            entry_bytes_max: 1 << 20,
            versioned_keys_max: 100,
            failure: failure.clone(),
            confirming: Confirming::start(members[0].clone(), leader, failure.failed()),
            metrics: Default::default(),
        };
        let running = tokio::spawn(sequencer.run());
        Self { queue, groups, members, running, failure, disks }
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
    let liveness = LivenessConfig { interval: second, suspect_after: 3 * second, boot: 1 };
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
