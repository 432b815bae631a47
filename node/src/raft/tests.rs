//! openraft's own storage suite on the real engine, and the lifecycle of a group: start, propose, restart, checkpoint,
//! purge.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::disk::{DiskOperation, Fault, FaultRule, FaultyDisk, MemoryDisk, RealDisk};
use chronicle_log::{EntryKind, Log, LogConfig, LogError, LogId, Store, StoreConfig};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use futures::future::BoxFuture;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use tempfile::TempDir;
use tokio::time::Instant;
use uuid::Uuid;

use super::lease::PROMISE;
use super::state_machine::MachineStore;
use super::store::LogStorage;
use super::type_config::{RaftEntry, RaftLogId, RaftVote, TypeConfig};
use super::{
    CommittedEntry, LeasePromise, Machine, Proposal, ProposeError, RaftGroup, RaftGroupConfig, RaftGroupError,
    RaftMember, Reservation, Role, Transport,
};
use crate::config::LinearizableReads;
use crate::host::Suspension;
use crate::peers::AskError;

pub(super) const LOG: LogId = LogId { topic: Uuid::from_u128(7), partition: 3 };

/// A node without peers.
pub(super) struct NoPeers;

impl Transport for NoPeers {
    fn ask(&self, to: u64, _: LogId, _: Message, _: Duration) -> BoxFuture<'_, Result<Message, AskError>> {
        Box::pin(async move { Err(AskError::Unreachable(to, "no peers".into())) })
    }

    fn alive(&self, _: u64) -> bool {
        false
    }
}

/// Stores the payloads that were applied.
#[derive(Default)]
pub(super) struct Journal {
    lines: Vec<String>,
}

impl Machine for Journal {
    fn apply(&mut self, entry: &CommittedEntry<'_>) -> Result<Bytes, String> {
        if let Some(data) = entry.data {
            self.lines.push(String::from_utf8(data.payload.to_vec()).map_err(|e| e.to_string())?);
        }
        Ok(Bytes::from(self.lines.join(",")))
    }

    fn applied(&mut self, _index: u64) {}

    fn save(&self) -> Vec<u8> {
        self.lines.join("\n").into_bytes()
    }

    fn restore(&mut self, bytes: &[u8], _applied_index: Option<u64>) -> Result<(), String> {
        let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
        self.lines = text.lines().map(str::to_owned).collect();
        Ok(())
    }
}

/// The storage as the suite wants it: purging past the end of a log that has entries empties it, as if a snapshot had
/// been installed. This node installs none: the storage refuses it.
struct Overtaken {
    storage: LogStorage,
    log: Arc<Log>,
}

impl RaftLogStorage<TypeConfig> for Overtaken {
    type LogReader = LogStorage;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, std::io::Error> {
        self.storage.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStorage {
        self.storage.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), std::io::Error> {
        self.storage.save_vote(vote).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), std::io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.storage.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), std::io::Error> {
        self.storage.truncate_after(last).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> Result<(), std::io::Error> {
        let position = self.log.position();
        if position.last.is_some() && position.next_index <= upto.index {
            let before = self.storage.get_log_state().await?;
            assert!(self.storage.purge(upto).await.is_err(), "a purge past the end of a log is refused");
            assert_eq!(self.storage.get_log_state().await?, before);
            self.log.reset(position.next_index, position.next_offset).unwrap();
        }
        self.storage.purge(upto).await
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, Overtaken, MachineStore<Journal>, (Arc<Store>, TempDir)> for Builder {
    async fn build(
        &self,
    ) -> Result<((Arc<Store>, TempDir), Overtaken, MachineStore<Journal>), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Arc::new(RealDisk), dir.path(), StoreConfig::default()).unwrap();
        let log = store.open_log(LOG, LogConfig::default()).unwrap();
        let storage = LogStorage::open(store.clone(), log.clone(), LOG, Default::default()).unwrap();
        let machine =
            MachineStore::open(log.clone(), Journal::default(), Default::default(), storage.traced(), 0).unwrap();
        Ok(((store, dir), Overtaken { storage, log }, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_adapter_passes_openrafts_own_suite_on_the_real_engine() {
    Suite::test_all(Builder).await.unwrap();
}

/// Node 2 grants every pre-vote and never responds to a vote request.
#[derive(Default)]
pub(super) struct GrantsPreVotes {
    asked: AtomicU64,
}

impl Transport for GrantsPreVotes {
    fn ask(&self, _: u64, _: LogId, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, AskError>> {
        Box::pin(async move {
            match message {
                Message::Vote(request) if request.pre_vote => {
                    Ok(Message::VoteDone(proto::VoteResponse { granted: true, ..Default::default() }))
                }
                Message::Vote(_) => {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(timeout).await;
                    Err(AskError::Timeout(2, timeout.as_millis() as u64))
                }
                _ => Err(AskError::Unreachable(2, "only vote requests are expected".into())),
            }
        })
    }

    fn alive(&self, _: u64) -> bool {
        true
    }
}

/// A replica of a group, which has promised nothing to anyone.
pub(super) fn started(
    store: &Arc<Store>,
    log: &Arc<Log>,
    node: u64,
    voters: &[u64],
    transport: Arc<dyn Transport>,
) -> RaftGroupConfig {
    RaftGroupConfig {
        store: store.clone(),
        log: log.clone(),
        id: LOG,
        node,
        transport,
        founders: Some(voters.iter().map(|id| (*id, RaftMember::default())).collect()),
        election_timeout: Duration::from_secs(1),
        reads: LinearizableReads::Lease,
        promise: LeasePromise::new(Instant::now() - PROMISE),
        suspension: Suspension::default,
        metrics: Default::default(),
    }
}

/// Node 1 of a group of nodes 1 and 2.
pub(super) async fn of_two(store: &Arc<Store>, transport: Arc<dyn Transport>) -> (RaftGroup<Journal>, Arc<Log>) {
    let (group, log) = start_of_two(store, transport).await;
    (group.unwrap(), log)
}

async fn start_of_two(
    store: &Arc<Store>,
    transport: Arc<dyn Transport>,
) -> (Result<RaftGroup<Journal>, RaftGroupError>, Arc<Log>) {
    let log = store.open_log(LOG, LogConfig::default()).unwrap();
    let start = started(store, &log, 1, &[1, 2], transport);
    (RaftGroup::start(start, Journal::default()).await, log)
}

async fn group(store: &Arc<Store>) -> (RaftGroup<Journal>, Arc<Log>) {
    let (group, log) = start_group(store).await;
    (group.unwrap(), log)
}

async fn start_group(store: &Arc<Store>) -> (Result<RaftGroup<Journal>, RaftGroupError>, Arc<Log>) {
    let log = store.open_log(LOG, LogConfig { segment_bytes: 4096, ..LogConfig::default() }).unwrap();
    let start = started(store, &log, 1, &[1], Arc::new(NoPeers));
    (RaftGroup::start(start, Journal::default()).await, log)
}

/// Wins the election of a group of one.
pub(super) async fn lead(group: &RaftGroup<Journal>) -> super::LeaderTerm {
    assert!(group.campaign().await.unwrap());
    let mut roles = group.roles();
    let mut role = roles.now();
    loop {
        if let Role::Leader(term) = role {
            group.settle(term).await.unwrap();
            return term;
        }
        role = roles.other(role).await.unwrap();
    }
}

pub(super) fn proposal(text: &str, reservation: Option<Reservation>) -> Proposal {
    let payload = Bytes::copy_from_slice(text.as_bytes());
    Proposal { kind: EntryKind::Data, record_count: 1, max_timestamp: 0, payload, trace: None, reservation }
}

pub(super) async fn propose(
    group: &RaftGroup<Journal>,
    leader: super::LeaderTerm,
    text: &str,
) -> Result<Bytes, ProposeError> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    group.propose(leader, proposal(text, None), move |result| tx.send(result).unwrap()).await.unwrap();
    rx.await.unwrap()
}

pub(super) fn open(dir: &TempDir) -> Arc<Store> {
    Store::open(Arc::new(RealDisk), dir.path(), StoreConfig::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_keeps_its_entries_over_restarts_with_and_without_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (first, log) = group(&store).await;
    let leader = lead(&first).await;
    assert_eq!(propose(&first, leader, "a").await.unwrap(), "a");
    first.checkpoint().await.unwrap();
    assert_eq!(propose(&first, leader, "b").await.unwrap(), "a,b");
    first.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();

    let store = open(&dir);
    let (second, log) = group(&store).await;
    let next_leader = lead(&second).await;
    assert!(next_leader.term > leader.term, "{next_leader:?} after {leader:?}");
    // A proposal pinned to the old term does not land.
    assert!(matches!(propose(&second, leader, "x").await, Err(ProposeError::NotAccepted(..))));
    assert_eq!(propose(&second, next_leader, "c").await.unwrap(), "a,b,c");
    second.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_lets_segments_go_and_the_group_starts_from_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (first, log) = group(&store).await;
    let leader = lead(&first).await;
    let long = "x".repeat(1000);
    for _ in 0..40 {
        propose(&first, leader, &long).await.unwrap();
    }
    first.checkpoint().await.unwrap();
    let keep = log.retention_index(Some(8192), None, u64::MAX).expect("more than two segments are there");
    first.purge(keep - 1).await.unwrap();
    // Segments are sealed in the background; only sealed ones are deleted.
    while log.delete_before(keep).unwrap().segments == 0 {
        tokio::task::yield_now().await;
    }
    assert!(log.position().first_index > 0);
    first.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();

    let store = open(&dir);
    let (second, log) = group(&store).await;
    let leader = lead(&second).await;
    let lines = propose(&second, leader, "end").await.unwrap();
    assert_eq!(lines.split(|b| *b == b',').count(), 41);
    second.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}

/// Removes what is after the first `keep` entries of a log whose group has taken a checkpoint or purged.
async fn lost_end(keep: u64, purge: bool) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (first, log) = group(&store).await;
    let leader = lead(&first).await;
    for text in ["a", "b", "c"] {
        propose(&first, leader, text).await.unwrap();
    }
    first.checkpoint().await.unwrap();
    let last = first.status().applied.unwrap();
    if purge {
        first.purge(last).await.unwrap();
        std::fs::remove_file(log.dir().join("checkpoint")).unwrap();
    }
    first.shutdown().await;
    match keep {
        // Not even an entry is left, and the log is as if it had never been written to.
        0 => log.reset(0, 0).unwrap(),
        keep => log.truncate_after(keep - 1).unwrap(),
    }
    let kept = log.read(0, u64::MAX, usize::MAX).unwrap();
    log.close().unwrap();
    drop(log);

    // However often it is started, it neither votes nor leads, and keeps what it has.
    for _ in 0..2 {
        let (started, log) = start_group(&store).await;
        let error = started.err().expect("a log that has lost its end does not start a group");
        let RaftGroupError::Log(LogError::Damaged { index, ref reason, .. }) = error else { panic!("{error}") };
        assert_eq!(index, Some(keep));
        let witness = if purge { "purge mark" } else { "checkpoint" };
        assert!(reason.contains(&format!("its {witness} covers entry {last}")), "{reason}");
        assert_eq!(log.read(0, u64::MAX, usize::MAX).unwrap(), kept);
        log.close().unwrap();
    }
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_before_its_checkpoint_or_purge_mark_is_damaged_and_not_emptied() {
    for keep in [0, 1, 3] {
        lost_end(keep, false).await;
        lost_end(keep, true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_that_met_a_full_disk_is_not_used_before_it_is_on_disk() {
    let disk = FaultyDisk::new(Arc::new(MemoryDisk::new()));
    let store = Store::open(Arc::new(disk.clone()), std::path::Path::new("/data"), StoreConfig::default()).unwrap();
    let (first, log) = of_two(&store, Arc::new(NoPeers)).await;
    let last = first.last_position().await;
    let full = disk.add(FaultRule::new(DiskOperation::Write, Fault::NO_SPACE).path("/meta/"));
    let vote = Some(proto::Vote { term: 5, node: 2, committed: false });
    let request = proto::VoteRequest { vote, last, leadership_transfer: false, pre_vote: false };
    let granted = |answer: &Message| matches!(answer, Message::VoteDone(done) if done.granted);
    let answer = first.handle(2, Message::Vote(request)).await;
    assert!(!granted(&answer), "{answer:?}");
    first.shutdown().await;
    let _ = log.close();
    drop(log);

    let (second, log) = start_of_two(&store, Arc::new(NoPeers)).await;
    let error = second.err().expect("a group does not start with a vote that is not on disk");
    assert!(matches!(error, RaftGroupError::Log(LogError::NoSpace { .. })), "{error}");
    let _ = log.close();
    drop(log);

    disk.remove(full);
    let (third, log) = of_two(&store, Arc::new(NoPeers)).await;
    let answer = third.handle(2, Message::Vote(request)).await;
    assert!(granted(&answer), "{answer:?}");
    third.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}

// One thread: the group's own task has not run when its start returns, unless that waits for it.
#[tokio::test]
async fn a_group_that_has_started_knows_its_members_and_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (group, log) = of_two(&store, Arc::new(NoPeers)).await;
    let status = group.status();
    assert_eq!(status.voters, BTreeSet::from([1, 2]));
    assert_eq!((status.last, status.applied), (Some(0), None), "the members' entry is there and not committed");
    group.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}

#[tokio::test]
async fn a_second_campaign_does_not_make_void_the_votes_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let transport = Arc::new(GrantsPreVotes::default());
    let (group, log) = of_two(&store, transport.clone()).await;
    let stood = tokio::join!(group.campaign(), group.campaign(), group.campaign());
    let stood = [stood.0.unwrap(), stood.1.unwrap(), stood.2.unwrap()];
    assert_eq!(stood, [true, false, false]);
    assert_eq!((group.status().term, transport.asked.load(Ordering::Relaxed)), (1, 1));
    // The votes have not arrived in time: it may start another election.
    assert!(group.campaign().await.unwrap());
    assert_eq!(group.status().term, 2);
    group.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}

#[tokio::test]
async fn a_pre_vote_of_a_replica_that_is_behind_reports_that_a_leader_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (group, log) = of_two(&store, Arc::new(NoPeers)).await;
    let ask = async |last: Option<proto::LogPosition>| {
        let vote = Some(proto::Vote { term: 1, node: 2, committed: false });
        let request = proto::VoteRequest { vote, last, leadership_transfer: false, pre_vote: true };
        match group.handle(2, Message::Vote(request)).await {
            Message::VoteDone(done) => (done.granted, group.take_leader_wanted()),
            other => panic!("no answer to a vote: {other:?}"),
        }
    };
    assert_eq!(ask(None).await, (false, true));
    assert_eq!(
        ask(group.last_position().await).await,
        (true, false),
        "a replica that has everything can become the leader"
    );
    group.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}

/// Stores so many proposals in a group of one, with a checkpoint of the first two and one of all, and closes it. `purged`: the
/// beginning of its log is deleted. Returns the checkpoint's file and the bytes of the first checkpoint.
async fn stored(dir: &TempDir, proposals: usize, purged: bool) -> (std::path::PathBuf, Vec<u8>) {
    let store = open(dir);
    let (group, log) = group(&store).await;
    let leader = lead(&group).await;
    let path = log.dir().join("checkpoint");
    let mut early = Vec::new();
    for at in 0..proposals {
        propose(&group, leader, &format!("{at}{}", "x".repeat(1000))).await.unwrap();
        if at == 1 {
            group.checkpoint().await.unwrap();
            early = std::fs::read(&path).unwrap();
        }
    }
    group.checkpoint().await.unwrap();
    if purged {
        let keep = log.retention_index(Some(8192), None, u64::MAX).expect("more than two segments are there");
        group.purge(keep - 1).await.unwrap();
        while log.position().first_index == 0 {
            log.delete_before(keep).unwrap();
            tokio::task::yield_now().await;
        }
    }
    group.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
    (path, early)
}

/// What can happen to a checkpoint: a bit is flipped, it is cut, missing, or a folder.
fn spoil(path: &std::path::Path, how: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(path).unwrap();
    match how {
        0 => std::fs::write(path, bytes).unwrap(),
        1 => std::fs::write(path, &bytes[..middle]).unwrap(),
        2 => {}
        _ => std::fs::create_dir(path).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_no_use_is_rebuilt_from_a_log_with_all_entries() {
    for how in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = stored(&dir, 10, false).await;
        spoil(&path, how);
        let store = open(&dir);
        let (group, log) = group(&store).await;
        let leader = lead(&group).await;
        let lines = propose(&group, leader, "end").await.unwrap();
        assert_eq!(lines.split(|b| *b == b',').count(), 11, "{how}");
        group.checkpoint().await.unwrap();
        let aside = path.with_file_name("quarantine-1").join("checkpoint");
        assert_eq!(aside.exists(), how != 2, "{how}: a checkpoint that is of no use is kept for analysis");
        group.shutdown().await;
        log.close().unwrap();
        store.close().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_whose_content_cannot_be_restored_is_rebuilt_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    stored(&dir, 10, false).await;
    let store = open(&dir);
    let log = store.open_log(LOG, LogConfig::default()).unwrap();
    log.save_checkpoint(b"no checkpoint of a group").unwrap();
    log.close().unwrap();
    drop(log);
    let (group, log) = group(&store).await;
    let leader = lead(&group).await;
    assert_eq!(propose(&group, leader, "end").await.unwrap().split(|b| *b == b',').count(), 11);
    group.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_beginning_does_not_open_without_the_checkpoint_that_covers_it() {
    for how in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let (path, early) = stored(&dir, 40, true).await;
        if how == 4 {
            // Intact, and older than the first entry of the log.
            std::fs::write(&path, &early).unwrap();
        } else {
            spoil(&path, how);
        }
        let before = std::fs::read(&path).ok();
        let store = open(&dir);
        let log = store.open_log(LOG, LogConfig::default()).unwrap();
        let first = log.position().first_index;
        let start = started(&store, &log, 1, &[1], Arc::new(NoPeers));
        let Err(error) = RaftGroup::start(start, Journal::default()).await else {
            panic!("{how}: a group without its state must not start")
        };
        let RaftGroupError::Log(LogError::Damaged { path: at, index: None, reason, .. }) = error else {
            panic!("{how}: {error}")
        };
        assert_eq!(at, path);
        if how == 2 || how == 4 {
            assert!(reason.contains(&format!("raft indexes {first}..")), "{how}: {reason}");
        }
        assert_eq!(std::fs::read(&path).ok(), before, "{how}: nothing is written over it");
        log.close().unwrap();
        store.close().unwrap();
    }
}
