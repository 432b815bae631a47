//! A tail in doubt: what a replica does whose log was cut when it was opened, and why no acknowledged entry is lost by that.
//!
//! The engine cuts bytes behind the last intact entry that no durable mark covers: a torn write, or entries that this replica
//! had acknowledged and whose bytes were damaged. One log cannot tell which. Without more, such a replica helps to elect a
//! leader without these entries, when the others that have them are away. This follows Protocol-Aware Recovery
//! (Alagappan et al., FAST '18, section 4): storage marks what it cannot tell, and the group settles it.
//!
//! # The rule
//!
//! The *floor* of a replica in doubt is a log position that no lost entry exceeds: as openraft compares log ids, by term, leader
//! and index. While in doubt the replica
//!
//! - follows a leader as any other;
//! - grants a vote, or a pre-vote, only to a candidate whose last entry is at or after the floor;
//! - is no candidate, and takes over no leadership.
//!
//! The floor is the last lost entry where its header was readable. Otherwise it has the highest index that the bytes may have
//! held, and term and leader of the replica's vote: the vote is on disk before an entry of its term is acknowledged. Floor and
//! doubt are in the journal before the engine forgets the cut, and the engine has noted the cut before it cut.
//!
//! The doubt is *settled* by the first of:
//!
//! 1. A leader. It answers, after this replica has started, that it leads in the term of this replica's vote, and with its
//!    last entry x; and this replica has x on disk.
//! 2. All other voters, of both configurations while the voters change. They have answered in two rounds, one after the other,
//!    after this replica has started: the floor is lowered to the greatest last entry that any of them named. Then 3.
//! 3. Its own log, when it reaches the floor.
//! 4. The membership, when there is no other replica: what is lost is lost, and a warning says so.
//! 5. A person (`cluster/decree.rs`), when the machines that have the entries never come back.
//!
//! # Why this is safe
//!
//! Let e be an entry of term t that was committed with an acknowledgement of this replica F, and that F lost. *A log holds e if
//! it has an entry of a leader elected after t, or reaches e in t*: that leader held e (leader completeness, which this
//! argument keeps up), and logs that agree in one entry agree in all before it.
//!
//! - *Votes, and 3.* e is not after the floor. A log that ends at or after the floor therefore holds e, be it a candidate's
//!   or, after F has followed some leader, F's own. So every leader that was elected with F's vote holds e.
//! - *1.* Entries of terms before the leader's are in its log by leader completeness, and those of its own term because it
//!   appended them before F acknowledged them. F knew of no later term, and acknowledged nothing in one. All of them are
//!   not after x, since F acknowledged them before it started and the leader named x later. F has x, thus all of them.
//!   A stored vote does not prove leadership, since it survives the leader's crash: the answer says that the voter leads now.
//! - *2.* Let L be the leader of t. If L still led t when it first answered, its log held e: it appends an entry before any
//!   other replica has it. Otherwise e was committed before L's first answer, or never by F's acknowledgement; then every
//!   other replica of e's majority had e before the second round and named an entry at or after it, unless it lost e as
//!   well. Either way some answer is at or after e, if anybody has e. A log that ends at or after the greatest answer holds e.
//!   An answer of a replica that is in doubt itself counts: if it lost e too, another one has e or nobody has.
//!
//! What this relies on, beside raft's own assumptions:
//!
//! - All voters follow the rule. Voters of earlier releases do not, and do not say that they lead: 1 waits for an upgrade.
//! - The log shows that it was cut. Bytes that are missing from the end of a file with nothing in their place, and that no mark
//!   covers, cannot be noticed by anyone (docs/disk-format.md, "What stays unknowable").
//! - What was lost does not contain two changes of the voters, one after the other, of which the second removed the voters
//!   that F asks in 2. Each is flushed before the next one is proposed, so that both are in the lost end only when marks are
//!   missing as well.
//!
//! Without a cut nothing of this costs anything. With one, a leader or the voters settle it within a round trip or two.
//!
//! This file has the rule and its state; `settling.rs` asks the other replicas. Neighbours: `election.rs` asks before every vote.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chronicle_log::{Log, LogError, LogId, LostTail, Store};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::type_config::{RaftLogId, RaftVote, log_id};
use crate::host::flushed::journal;

/// [`TailDoubt`], or nothing.
pub(crate) const KEY_DOUBT: u8 = 5;
/// A doubt that lasts this long is logged as a warning.
const SAY_AFTER: Duration = Duration::from_secs(2);

/// What a replica may have lost from the end of its log, as the journal keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailDoubt {
    /// Raft index of the first entry that may be lost.
    pub from: u64,
    /// Term, leader and raft index that the last lost entry does not exceed.
    pub(super) floor: (u64, u64, u64),
}

impl TailDoubt {
    /// `kept`: term and leader of the last entry that the log has; `voted`: those of the replica's vote.
    fn of(lost: &LostTail, kept: (u64, u64), voted: (u64, u64)) -> Self {
        // A header outside of these is no header of this log.
        let known = lost.last.filter(|last| (kept..=voted).contains(last));
        let (term, leader) = known.unwrap_or(voted.max(kept));
        Self { from: lost.from, floor: (term, leader, lost.to) }
    }

    /// Raft index of the last entry that may be lost, at most.
    pub fn to(&self) -> u64 {
        self.floor.2
    }

    /// Raft term of that entry, at most.
    pub fn term(&self) -> u64 {
        self.floor.0
    }

    /// The doubt of a replica whose group does not run, as the journal has it.
    pub(crate) fn stored(store: &Store, id: LogId) -> Option<Self> {
        Self::decode(&store.journal_get(id, KEY_DOUBT)?)
    }

    pub(super) fn floor(&self) -> RaftLogId {
        let (term, leader, index) = self.floor;
        log_id(term, leader, index)
    }

    /// Covers two cuts of one log.
    fn merge(self, other: Self) -> Self {
        let (term, leader, index) = self.floor;
        let (other_term, other_leader, other_index) = other.floor;
        let (term, leader) = (term, leader).max((other_term, other_leader));
        Self { from: self.from.min(other.from), floor: (term, leader, index.max(other_index)) }
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        let (term, leader, index) = self.floor;
        for number in [self.from, term, leader, index] {
            out.put_u64_le(number);
        }
        out.freeze()
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            0 => None,
            32 => {
                let from = bytes.get_u64_le();
                Some(Self { from, floor: (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le()) })
            }
            // Of a later release: nothing is known but that there is doubt.
            _ => Some(Self { from: 0, floor: (u64::MAX, u64::MAX, u64::MAX) }),
        }
    }
}

/// The doubt of one replica, and what other replicas have said about it since the group has started.
pub(super) struct DoubtState {
    store: Arc<Store>,
    log: Arc<Log>,
    now: Mutex<Option<TailDoubt>>,
    /// Locked while the replica settles it.
    pub(super) evidence: tokio::sync::Mutex<Evidence>,
}

/// What other replicas have said.
pub(super) struct Evidence {
    /// The vote of a leader and its last entry.
    pub(super) leader: Option<(RaftVote, RaftLogId)>,
    /// The greatest last entry that the other voters named, if all of them have answered in the last round.
    pub(super) round: Option<Option<RaftLogId>>,
    /// When the next log line is due.
    pub(super) say_at: Instant,
}

impl DoubtState {
    /// Reads the doubt, after it has taken over what the engine has noted. `vote`: the replica's vote.
    ///
    /// # Errors
    /// When the journal cannot take it.
    pub(super) async fn open(store: &Arc<Store>, log: &Arc<Log>, vote: Option<RaftVote>) -> Result<Self, LogError> {
        let id = log.id();
        let mut now = TailDoubt::stored(store, id);
        if let Some(lost) = log.lost_tail() {
            let voted = vote.map_or((0, 0), |vote| (vote.leader_id.term, vote.leader_id.node_id));
            let kept = log.position().last.map_or((0, 0), |last| (last.term, last.leader));
            let doubt = TailDoubt::of(&lost, kept, voted);
            let doubt = now.map_or(doubt, |before| before.merge(doubt));
            journal(store, id, KEY_DOUBT, doubt.encode()).await?;
            let log = log.clone();
            // The runtime is shutting down.
            crate::host::blocking(move || log.forget_lost_tail()).await.unwrap_or(Err(LogError::Closed))?;
            tracing::info!(
                group = %id, from = doubt.from, to = doubt.to(), bytes = lost.bytes,
                "the end of the log was cut when it was opened: other replicas must tell whether entries are missing"
            );
            now = Some(doubt);
        }
        let evidence = Evidence { leader: None, round: None, say_at: Instant::now() + SAY_AFTER };
        let evidence = tokio::sync::Mutex::new(evidence);
        Ok(Self { store: store.clone(), log: log.clone(), now: Mutex::new(now), evidence })
    }

    /// The doubt, if there is any.
    pub(super) fn now(&self) -> Option<TailDoubt> {
        *self.now.lock()
    }

    /// Whether the replica must not help to elect a candidate whose last entry is `last`.
    pub(super) fn bars(&self, last: Option<&RaftLogId>) -> bool {
        self.now().is_some_and(|doubt| last < Some(&doubt.floor()))
    }

    fn id(&self) -> LogId {
        self.log.id()
    }

    /// Changes or removes the doubt, durably.
    pub(super) async fn put(&self, doubt: Option<TailDoubt>) -> Result<(), LogError> {
        let bytes = doubt.map_or_else(Bytes::new, |doubt| doubt.encode());
        journal(&self.store, self.id(), KEY_DOUBT, bytes).await?;
        *self.now.lock() = doubt;
        Ok(())
    }

    /// Removes the doubt, once everything that settles it is on disk.
    pub(super) async fn settle(&self) -> Result<(), LogError> {
        let log = self.log.clone();
        crate::host::blocking(move || log.flush()).await.unwrap_or(Err(LogError::Closed))?;
        self.put(None).await
    }

    /// Whether the log has this entry, or had it and has deleted it by retention.
    pub(super) async fn holds(&self, entry: RaftLogId) -> Result<bool, LogError> {
        let position = self.log.position();
        if entry.index >= position.next_index || entry.index < position.first_index {
            return Ok(entry.index < position.first_index);
        }
        let log = self.log.clone();
        let read = crate::host::blocking(move || log.read(entry.index, entry.index + 1, 1));
        let found = read.await.unwrap_or(Err(LogError::Closed))?;
        let found = found.first().map(|stored| (stored.entry.term, stored.entry.leader));
        Ok(found == Some((entry.leader_id.term, entry.leader_id.node_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_last_lost_entry_or_the_highest_that_the_vote_allows() {
        let lost = LostTail { from: 5, to: 7, last: Some((2, 1)), bytes: 300 };
        let known = TailDoubt::of(&lost, (1, 3), (4, 3));
        assert_eq!(known, TailDoubt { from: 5, floor: (2, 1, 7) });
        for forged in [(9, 9), (1, 2)] {
            let forged = LostTail { last: Some(forged), ..lost };
            assert_eq!(TailDoubt::of(&forged, (1, 3), (4, 3)), TailDoubt { from: 5, floor: (4, 3, 7) });
        }
        let unknown = TailDoubt::of(&LostTail { from: 6, to: 9, last: None, bytes: 300 }, (1, 3), (4, 3));
        assert_eq!(unknown, TailDoubt { from: 6, floor: (4, 3, 9) });
        assert_eq!(known.merge(unknown), TailDoubt { from: 5, floor: (4, 3, 9) });
        for doubt in [known, unknown] {
            assert_eq!(TailDoubt::decode(&doubt.encode()), Some(doubt));
        }
        assert_eq!(TailDoubt::decode(&[]), None);
    }
}
