//! The checkpoint of a group: raft's position and the machine's state, and whether a log can be opened with it.
//!
//! A checkpoint is derived from the log. Without it the state is rebuilt from the log's entries, if the log still has all of them;
//! otherwise the replica cannot be opened before it has the checkpoint of another one.
//!
//! Neighbours: `state_machine.rs` saves and restores it; `cluster/fill.rs` receives the one of another replica.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use chronicle_log::{Log, LogError};

use super::type_config::{MembershipRecord, RaftLogId, SnapshotMeta, StoredMembership, log_id};

/// Head of a checkpoint: raft's position. Stored as JSON behind its length (u32, little-endian), followed by the
/// machine's own bytes.
#[derive(serde::Serialize, serde::Deserialize)]
struct Head {
    /// Term, leader and index of the last applied entry.
    last: Option<(u64, u64, u64)>,
    membership_log_id: Option<(u64, u64, u64)>,
    membership: MembershipRecord,
}

/// Encodes a checkpoint: its head and the machine's bytes.
pub(super) fn encode_checkpoint(meta: &SnapshotMeta, state: &[u8]) -> Bytes {
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

/// Decodes a checkpoint into its position and the machine's bytes.
///
/// # Errors
/// The head cannot be read.
pub(super) fn decode_checkpoint(bytes: &Bytes) -> io::Result<(SnapshotMeta, Bytes)> {
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

/// Loads the checkpoint of a log that raft may read from raft index `first` on. `None`: there is none, and the log has every entry
/// from which its state is derived.
///
/// # Errors
/// [`LogError::Damaged`] when the checkpoint is missing or of no use: a check fails, or entries between its position and `first` are
/// deleted. Errors of the disk.
pub(super) fn load_checkpoint(log: &Log, first: u64) -> Result<Option<Bytes>, LogError> {
    let Some(bytes) = log.load_checkpoint()? else {
        return match first {
            0 => Ok(None),
            first => Err(damaged(log, format!("it is missing; {}", needed(log, first)))),
        };
    };
    let (meta, _) = decode_checkpoint(&bytes).map_err(|error| damaged(log, error.to_string()))?;
    let next = meta.last_log_id.map_or(0, |id| id.index + 1);
    match next < first {
        true => Err(damaged(log, format!("it ends before raft index {next}; {}", needed(log, first)))),
        false => Ok(Some(bytes)),
    }
}

/// Damage of a log's checkpoint.
pub(super) fn damaged(log: &Log, reason: impl Into<String>) -> LogError {
    LogError::Damaged { path: log.checkpoint_path(), position: 0, index: None, reason: reason.into() }
}

fn needed(log: &Log, first: u64) -> String {
    let position = log.position();
    format!(
        "the log has only raft indexes {first}..{}, offsets {}..{}, from which the state cannot be rebuilt",
        position.next_index, position.start_offset, position.next_offset
    )
}
