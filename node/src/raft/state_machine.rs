//! A group's state machine: applies committed entries, and saves its small state as the log's checkpoint.
//!
//! The records themselves are never copied into the machine: a committed entry is readable in the log. A machine holds
//! only what must be derived from the entries (a producer table, topics), so that its snapshot is small and cheap.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use chronicle_log::Log;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::store::{blocking, to_io};
use super::traced::{Traced, TracedEntry};
use super::type_config::{
    MembershipRecord, Proposal, RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id,
};
use crate::telemetry::{RaftMetrics, Stage};

/// One committed entry.
#[derive(Debug)]
pub struct CommittedEntry<'a> {
    /// The data of a data entry; `None` for control entries.
    pub data: Option<&'a Proposal>,
}

/// Applies a group's committed entries. Must be deterministic: the same entries give the same state on every replica.
pub trait Machine: Send + 'static {
    /// Applies the next entry and returns the response for its proposer.
    ///
    /// # Errors
    /// A text that names the entry and the rule that it breaks. The replica stops, since its log differs from what a
    /// leader wrote.
    fn apply(&mut self, entry: &CommittedEntry<'_>) -> Result<Bytes, String>;

    /// Called after a run of entries up to `index` (inclusive) was applied.
    fn applied(&mut self, index: u64);

    /// Returns the state as bytes, for [`Machine::restore`].
    fn save(&self) -> Vec<u8>;

    /// Replaces the state by one that covers entries up to `applied_index` (inclusive).
    ///
    /// # Errors
    /// A text that says why the bytes are not valid.
    fn restore(&mut self, bytes: &[u8], applied_index: Option<u64>) -> Result<(), String>;
}

/// Head of a checkpoint: raft's position. Stored as JSON behind its length (u32, little-endian), followed by the
/// machine's own bytes.
#[derive(serde::Serialize, serde::Deserialize)]
struct Head {
    /// Term, leader and index of the last applied entry.
    last: Option<(u64, u64, u64)>,
    membership_log_id: Option<(u64, u64, u64)>,
    membership: MembershipRecord,
}

fn encode_checkpoint(meta: &SnapshotMeta, state: &[u8]) -> Bytes {
    let plain = |id: &RaftLogId| (id.leader_id.term, id.leader_id.node_id, id.index);
    let head = Head {
        last: meta.last_log_id.as_ref().map(plain),
        membership_log_id: meta.last_membership.log_id().as_ref().map(plain),
        membership: MembershipRecord::from_membership(meta.last_membership.membership()),
    };
    let head = serde_json::to_vec(&head).expect("a checkpoint's head has only plain values");
    let mut out = BytesMut::with_capacity(4 + head.len() + state.len());
    out.put_u32_le(head.len() as u32);
    out.put_slice(&head);
    out.put_slice(state);
    out.freeze()
}

fn decode_checkpoint(bytes: &Bytes) -> io::Result<(SnapshotMeta, Bytes)> {
    let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidData, format!("checkpoint: {e}"));
    let too_short = || invalid(format!("{} bytes are fewer than its head needs", bytes.len()));
    let length = bytes.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize).ok_or_else(too_short)?;
    let head = bytes.get(4..4 + length).ok_or_else(too_short)?;
    let head: Head = serde_json::from_slice(head).map_err(|e| invalid(e.to_string()))?;
    let membership_id = head.membership_log_id.map(|(term, leader, index)| log_id(term, leader, index));
    let membership = head.membership.into_membership().map_err(invalid)?;
    let meta = SnapshotMeta {
        last_log_id: head.last.map(|(term, leader, index)| log_id(term, leader, index)),
        last_membership: StoredMembership::new(membership_id, membership),
    };
    Ok((meta, bytes.slice(4 + length..)))
}

/// Returns the raft index that a checkpoint covers (inclusive); `None` when it covers nothing, or cannot be read.
pub(crate) fn checkpoint_index(bytes: &Bytes) -> Option<u64> {
    decode_checkpoint(bytes).ok()?.0.last_log_id.map(|id| id.index)
}

struct MachineState<M> {
    machine: M,
    last_applied: Option<RaftLogId>,
    membership: StoredMembership,
}

/// openraft's view of a [`Machine`].
pub(super) struct MachineStore<M> {
    log: Arc<Log>,
    metrics: RaftMetrics,
    traced: Arc<Traced>,
    inner: Arc<Mutex<MachineState<M>>>,
}

impl<M> Clone for MachineStore<M> {
    fn clone(&self) -> Self {
        Self {
            log: self.log.clone(),
            metrics: self.metrics.clone(),
            traced: self.traced.clone(),
            inner: self.inner.clone(),
        }
    }
}

impl<M: Machine> MachineStore<M> {
    /// Restores the machine from the log's checkpoint, if there is one.
    pub(super) fn open(log: Arc<Log>, machine: M, metrics: RaftMetrics, traced: Arc<Traced>) -> io::Result<Self> {
        let store = Self {
            inner: Arc::new(Mutex::new(MachineState {
                machine,
                last_applied: None,
                membership: StoredMembership::default(),
            })),
            log,
            metrics,
            traced,
        };
        if let Some(bytes) = store.log.load_checkpoint().map_err(to_io)? {
            store.restore(&bytes)?;
        }
        Ok(store)
    }

    /// Returns the raft index of the last entry that is applied (inclusive).
    pub(super) fn applied_index(&self) -> Option<u64> {
        self.inner.lock().last_applied.map(|id| id.index)
    }

    fn restore(&self, bytes: &Bytes) -> io::Result<SnapshotMeta> {
        let (meta, state) = decode_checkpoint(bytes)?;
        let mut inner = self.inner.lock();
        inner
            .machine
            .restore(&state, meta.last_log_id.map(|id| id.index))
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("checkpoint: {e}")))?;
        inner.last_applied = meta.last_log_id;
        inner.membership = meta.last_membership.clone();
        Ok(meta)
    }

    /// Returns the state as a checkpoint, with raft's metadata of it.
    fn capture(&self) -> (SnapshotMeta, Bytes) {
        let inner = self.inner.lock();
        let meta = SnapshotMeta { last_log_id: inner.last_applied, last_membership: inner.membership.clone() };
        let state = inner.machine.save();
        drop(inner);
        let bytes = encode_checkpoint(&meta, &state);
        (meta, bytes)
    }
}

impl<M: Machine> RaftStateMachine<TypeConfig> for MachineStore<M> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let inner = self.inner.lock();
        Ok((inner.last_applied, inner.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = entry.log_id.index;
            let began = Instant::now();
            #[expect(clippy::disallowed_methods, reason = "spans carry wall-clock times, which decide nothing")]
            let sampled = self.traced.take(index).map(|entry| (entry, SystemTime::now()));
            let answer = {
                let mut inner = self.inner.lock();
                let data = match &entry.payload {
                    EntryPayload::Normal(data) => Some(data),
                    EntryPayload::Blank => None,
                    EntryPayload::Membership(membership) => {
                        inner.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                        None
                    }
                };
                let answer = inner.machine.apply(&CommittedEntry { data }).map_err(|e| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("apply raft index {index}: {e}"))
                })?;
                inner.last_applied = Some(entry.log_id);
                // Readers may see the entry before its producer has the response, never later.
                inner.machine.applied(index);
                answer
            };
            self.metrics.stage(Stage::Apply, began.elapsed());
            if let Some(responder) = responder {
                responder.send(answer);
            }
            if let Some((TracedEntry { trace, at }, began)) = sampled {
                trace.stage("commit", at, began);
                #[expect(clippy::disallowed_methods, reason = "spans carry wall-clock times, which decide nothing")]
                trace.stage("apply", began, SystemTime::now());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> Result<(), io::Error> {
        let found = self.restore(&snapshot)?;
        if found != *meta {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("snapshot: content at {found}: must be at {meta}, as in its metadata"),
            ));
        }
        let log = self.log.clone();
        blocking(move || log.save_checkpoint(&snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let Some(bytes) = self.log.load_checkpoint().map_err(to_io)? else { return Ok(None) };
        let (meta, _) = decode_checkpoint(&bytes)?;
        Ok(Some(Snapshot { meta, snapshot: bytes }))
    }
}

impl<M: Machine> RaftSnapshotBuilder<TypeConfig> for MachineStore<M> {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (meta, bytes) = self.capture();
        let log = self.log.clone();
        let saved = bytes.clone();
        blocking(move || {
            // A checkpoint must never be ahead of the log it belongs to (memory durability applies before the flush).
            log.flush()?;
            log.save_checkpoint(&saved)
        })
        .await?;
        Ok(Snapshot { meta, snapshot: bytes })
    }
}
