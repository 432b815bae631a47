//! A person declares the log of one replica to be the truth, when no rule can tell which one is: after damage to several replicas, or
//! when machines do not come back.
//!
//! The declared source keeps its log as it is, and votes again. The other replicas set everything that they have aside, in a quarantine
//! folder, and fill their logs from it. Acknowledged entries that the source does not hold are lost: the caller has made sure that the
//! person knows.
//!
//! Invariant: a declaration ends when the group has a leader again, so that it never makes a stale replica the source of a later
//! repair.
//!
//! These functions work on a closed log, and block. Neighbours: `chronicle debug recover` calls them in a stopped node's data directory, the
//! partition in a running node.

use bytes::Bytes;
use chronicle_log::{Cut, Log, LogConfig, LogError, LogId, Store};

use super::fill_mark::{FillMark, FillReason, fill_mark};
use crate::raft::{KEY_DECLARED, KEY_DOUBT, KEY_FILL, checkpoint_index, purged_index};

/// Returns whether a person has declared this replica to be the source of its group.
pub(crate) fn is_declared(store: &Store, id: LogId) -> bool {
    store.journal_get(id, KEY_DECLARED).is_some_and(|value| value.first() == Some(&1))
}

/// Ends the declaration, since the group has a leader. Durable within a moment.
pub(crate) fn end_declaration(store: &Store, id: LogId) {
    if let Err(error) = store.journal_put(id, KEY_DECLARED, Bytes::from_static(&[0]), None) {
        tracing::debug!(log = %id, %error, "cannot note that the group has a leader");
    }
}

/// Declares the log of this replica to be the truth: it needs no filling any more. Returns the raft index after its last entry.
///
/// # Errors
/// When the state of the group cannot be derived from what the log has, or the log cannot be opened.
pub(crate) fn declare_source(store: &Store, id: LogId) -> Result<u64, String> {
    let text = |error: LogError| error.to_string();
    let open = || store.open_log(id, LogConfig::default());
    let log = match open() {
        Err(LogError::Damaged { .. }) => {
            // As for a repair: a crash must not leave a cut log that votes.
            put(store, id, KEY_FILL, damaged_mark(store, id)).map_err(text)?;
            store.cut_damaged(id).map_err(text)?;
            open().map_err(text)?
        }
        opened => opened.map_err(text)?,
    };
    let usable = make_usable(store, &log);
    let next_index = log.position().next_index;
    // What may be missing from its end is given up.
    let settled = put(store, id, KEY_DOUBT, Bytes::new()).and_then(|()| log.forget_lost_tail());
    log.close().map_err(text)?;
    usable?;
    settled.map_err(text)?;
    put(store, id, KEY_DECLARED, Bytes::from_static(&[1])).map_err(text)?;
    put(store, id, KEY_FILL, Bytes::from_static(&[0])).map_err(text)?;
    tracing::warn!(log = %id, next_index, "declared to be the source of its group: entries that it does not have are lost");
    Ok(next_index)
}

/// Checks that the group's state can be derived from a log. A checkpoint that is ahead of a log with its first entry is set aside.
fn make_usable(store: &Store, log: &Log) -> Result<(), String> {
    let position = log.position();
    let (first, next) = (position.first_index, position.next_index);
    if position.last.is_none() {
        return Err(format!("log {}: has no entries, and cannot be the source", log.id()));
    }
    if let Some(purged) = purged_index(store, log.id()).filter(|purged| *purged >= next) {
        return Err(format!("log {}: ends at raft index {next}, before the deleted entries up to {purged}", log.id()));
    }
    let covered = match log.load_checkpoint() {
        Ok(checkpoint) => checkpoint.as_ref().and_then(checkpoint_index).map_or(0, |index| index + 1),
        Err(LogError::Damaged { .. }) => u64::MAX,
        Err(error) => return Err(error.to_string()),
    };
    match (covered <= next && covered >= first, first) {
        (true, _) => Ok(()),
        (false, 0) => log.quarantine_checkpoint().map(drop).map_err(|error| error.to_string()),
        (false, first) => Err(format!(
            "log {}: has only raft indexes {first}..{next}, and no checkpoint that fits: its state cannot be rebuilt",
            log.id()
        )),
    }
}

/// Sets the whole log of this replica aside, so that it fills from the source. Its votes stay.
///
/// # Errors
/// When the files cannot be moved. The replica does not vote before it is filled, in any case.
pub(crate) fn set_aside(store: &Store, id: LogId) -> Result<Cut, LogError> {
    put(store, id, KEY_FILL, damaged_mark(store, id))?;
    put(store, id, KEY_DECLARED, Bytes::from_static(&[0]))?;
    let cut = store.cut_from(id, 0)?;
    // It may be ahead of what the source has.
    let log = store.open_log(id, LogConfig::default())?;
    let quarantined = log.quarantine_checkpoint();
    log.close()?;
    quarantined?;
    tracing::warn!(log = %id, had_to = cut.was, quarantine = ?cut.quarantine, "log set aside");
    Ok(cut)
}

/// The mark of a replica whose log is to be cut: what it has held is unknown from now on.
fn damaged_mark(store: &Store, id: LogId) -> Bytes {
    let votes_lost = fill_mark(store, id).is_some_and(|mark| mark.votes_lost);
    FillMark { reason: FillReason::Damaged, votes_lost, held: None }.encode()
}

/// Writes a value to the journal and waits until it is on disk.
fn put(store: &Store, id: LogId, key: u8, value: Bytes) -> Result<(), LogError> {
    let (sent, done) = std::sync::mpsc::channel();
    let done_with = Box::new(move |result| {
        let _ = sent.send(result);
    });
    store.journal_put(id, key, value, Some(done_with))?;
    done.recv().unwrap_or(Err(LogError::Closed))
}
