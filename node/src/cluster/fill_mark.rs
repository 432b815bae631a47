//! The mark in the journal that a replica must fill its log before its group may run, and what such a replica still knows.
//!
//! Invariants:
//! - The mark of damage is durable before anything is cut out of the log, and gives way to no weaker one.
//! - `held` is a bound that is safe to rely on: it is noted only by the process that set the mark and then cut the log, from what the log had
//!   before. After a crash in between it stays unknown.
//!
//! Neighbours: `fill.rs` copies; `whole_copy.rs` judges by the bound; the partition and the controller decide when to cut.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use chronicle_log::{Cut, LogError, LogId, Store, mutant};

use crate::host::blocking;
use crate::host::flushed::journal;
use crate::raft::{KEY_FILL, TailDoubt, stored_term};

/// Why a replica fills its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillReason {
    /// It is new, or the leader has deleted what it needs next.
    Behind,
    /// It has lost entries that it may have acknowledged.
    Damaged,
}

/// The mark of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FillMark {
    /// Why it fills its log.
    pub(crate) reason: FillReason,
    /// Its votes are lost too, with its journal.
    pub(crate) votes_lost: bool,
    /// Raft index (exclusive) up to which it may have held entries, at most; `None`: unknown.
    pub(crate) held: Option<u64>,
}

impl FillMark {
    /// The mark of a replica that has lost entries and votes, of which nothing is known.
    pub(crate) const NOTHING_KNOWN: Self = Self { reason: FillReason::Damaged, votes_lost: true, held: None };

    pub(crate) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(match (self.reason, self.votes_lost) {
            (FillReason::Behind, _) => 1,
            (FillReason::Damaged, false) => 2,
            (FillReason::Damaged, true) => 3,
        });
        if let Some(held) = self.held {
            out.put_u64_le(held);
        }
        out.freeze()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (reason, votes_lost) = match bytes.first()? {
            1 => (FillReason::Behind, false),
            2 => (FillReason::Damaged, false),
            3 => (FillReason::Damaged, true),
            _ => return None,
        };
        let held = bytes.get(1..9).and_then(|held| held.try_into().ok()).map(u64::from_le_bytes);
        Some(Self { reason, votes_lost, held })
    }
}

/// An upper bound of the last entry that a replica has held: no entry of a later term, and in this term none from `end` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldAtMost {
    /// Raft term: that of its vote, which is durable before any entry of the term.
    pub(crate) term: u64,
    /// Raft index, exclusive.
    pub(crate) end: u64,
}

/// The mark of a replica; `None`: it need not fill its log.
pub(crate) fn fill_mark(store: &Store, id: LogId) -> Option<FillMark> {
    FillMark::decode(&store.journal_get(id, KEY_FILL)?)
}

/// Returns why a replica must fill its log before its group may run; `None`: it need not.
pub(crate) fn fill_pending(store: &Store, id: LogId) -> Option<FillReason> {
    fill_mark(store, id).map(|mark| mark.reason).filter(|_| !mutant!("replica-votes-before-fill"))
}

/// What a damaged replica can have held at most; `None`: unknown, or it is not damaged.
pub(crate) fn held_at_most(store: &Store, id: LogId) -> Option<HeldAtMost> {
    let mark = fill_mark(store, id).filter(|mark| mark.reason == FillReason::Damaged && !mark.votes_lost)?;
    Some(HeldAtMost { term: stored_term(store, id), end: mark.held? })
}

/// Stores durably that a replica must fill its log, or (`None`) that its log is filled. A mark of damage stays as it is.
pub(crate) async fn store_fill_pending(
    store: &Arc<Store>,
    id: LogId,
    reason: Option<FillReason>,
) -> Result<(), LogError> {
    let value = match reason {
        None => Bytes::from_static(&[0]),
        Some(reason) => {
            let damaged = fill_mark(store, id).filter(|mark| mark.reason == FillReason::Damaged);
            damaged.unwrap_or(FillMark { reason, votes_lost: false, held: None }).encode()
        }
    };
    journal(store, id, KEY_FILL, value).await
}

/// Removes the damaged end from a closed log, after storing durably that the replica has lost entries. `from`: raft index of damage
/// that a read has found; `None`: opening the log finds it, or the damage is not in its entries.
pub(crate) async fn cut_damage(store: &Arc<Store>, id: LogId, from: Option<u64>) -> Result<Cut, LogError> {
    let before = fill_mark(store, id);
    store_fill_pending(store, id, Some(FillReason::Damaged)).await?;
    let cutter = store.clone();
    let cut = blocking(move || match from {
        Some(index) => cutter.cut_from(id, index),
        None => cutter.cut_damaged(id),
    });
    // The runtime is shutting down.
    let cut = cut.await.unwrap_or(Err(LogError::Closed))?;
    // What an earlier opening has cut off the end, and is in doubt, counts as well.
    let doubtful = TailDoubt::stored(store, id).map_or(0, |doubt| doubt.to().saturating_add(1));
    let may_have_held = cut.held.max(doubtful);
    let held = match before {
        None => Some(may_have_held),
        Some(mark) => mark.held.map(|held| held.max(may_have_held)),
    };
    if let (Some(mark), Some(_)) = (fill_mark(store, id), held) {
        journal(store, id, KEY_FILL, FillMark { held, ..mark }.encode()).await?;
    }
    Ok(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_one_of_an_earlier_version_knows_nothing() {
        for reason in [FillReason::Behind, FillReason::Damaged] {
            for held in [None, Some(0), Some(u64::MAX)] {
                let mark = FillMark { reason, votes_lost: false, held };
                assert_eq!(FillMark::decode(&mark.encode()), Some(mark));
            }
        }
        let nothing = FillMark::NOTHING_KNOWN;
        assert_eq!(FillMark::decode(&nothing.encode()), Some(nothing));
        assert_eq!(FillMark::decode(&[2]), Some(FillMark { votes_lost: false, ..nothing }));
        assert_eq!(FillMark::decode(&[0]), None);
        assert_eq!(FillMark::decode(&[]), None);
    }
}
