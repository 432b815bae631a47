//! A group's state machine: applies committed entries, and saves its small state as the log's checkpoint.
//!
//! The records themselves are never copied into the machine: a committed entry is readable in the log. A machine holds
//! only what must be derived from the entries (a producer table, topics), so that its snapshot is small and cheap.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use chronicle_log::{EntryKind, Log, LogError, mutant};
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::checkpoint::{damaged, decode_checkpoint, encode_checkpoint, load_checkpoint};
use super::control_entry::ControlEntry;
use super::store::{blocking, to_io};
use super::traced::{Traced, TracedEntry};
use super::type_config::{Proposal, RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::telemetry::{RaftMetrics, Stage};

/// One committed entry.
#[derive(Debug)]
pub struct CommittedEntry<'a> {
    /// Its raft index.
    pub index: u64,
    /// The data of a data entry; `None` for all others.
    pub data: Option<&'a Proposal>,
    /// The decision of a control entry; `None` for all others.
    pub control: Option<ControlEntry>,
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
    /// A text that says why the bytes are not valid. The state of a new machine is then still the one before the first entry.
    fn restore(&mut self, bytes: &[u8], applied_index: Option<u64>) -> Result<(), String>;
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
    /// Restores a new machine from the log's checkpoint. A checkpoint that is damaged is moved to quarantine when raft may read the
    /// log from its first entry on (`first` is 0): raft then applies every entry again.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when the machine needs a checkpoint and there is no sound one; errors of the disk.
    pub(super) fn open(
        log: Arc<Log>,
        machine: M,
        metrics: RaftMetrics,
        traced: Arc<Traced>,
        first: u64,
    ) -> Result<Self, LogError> {
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
        match store.restore_from_log(first) {
            Err(error @ LogError::Damaged { .. }) if first == 0 => {
                let quarantine = store.log.quarantine_checkpoint()?;
                tracing::warn!(
                    log = %store.log.id(), %error, ?quarantine,
                    "checkpoint is damaged, rebuilding the state from the log"
                );
            }
            restored => restored?,
        }
        Ok(store)
    }

    /// Returns the raft index of the last entry that is applied (inclusive).
    pub(super) fn applied_index(&self) -> Option<u64> {
        self.inner.lock().last_applied.map(|id| id.index)
    }

    fn restore_from_log(&self, first: u64) -> Result<(), LogError> {
        let Some(bytes) = load_checkpoint(&self.log, first)? else { return Ok(()) };
        self.restore(&bytes).map(drop).map_err(|error| damaged(&self.log, error.to_string()))
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
                let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, format!("apply raft index {index}: {e}"));
                let (data, control) = match &entry.payload {
                    EntryPayload::Normal(data) if data.kind == EntryKind::Data => (Some(data), None),
                    EntryPayload::Normal(data) => {
                        (None, Some(ControlEntry::decode(data.kind, &data.payload).map_err(invalid)?))
                    }
                    EntryPayload::Blank => (None, None),
                    EntryPayload::Membership(membership) => {
                        inner.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                        (None, None)
                    }
                };
                let answer = inner.machine.apply(&CommittedEntry { index, data, control }).map_err(invalid)?;
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
            let _ = mutant!("checkpoint-before-log") || log.flush().map(|()| true)?;
            log.save_checkpoint(&saved)
        })
        .await?;
        Ok(Snapshot { meta, snapshot: bytes })
    }
}
