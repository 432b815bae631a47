//! Repairs in the data directory of a stopped node: a damaged journal, and the choice of a group's source by a person.
//!
//! A damaged journal may have lost votes and marks, of every log. A node that has other nodes beside it therefore gets a journal in which
//! every log must be filled from a confirmed leader, and no vote is trusted (`cluster/fill_mark.rs`). What tells the node who it is cannot be
//! restored: without it the node joins again as a new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chronicle_log::disk::RealDisk;
use chronicle_log::{LogError, LogId, SalvagedJournal, Store, StoreConfig};

use super::generation::{KEY_GENERATION, StoredGeneration};
use super::join_cluster::KEY_MEMBERSHIP;
use crate::cluster::{CONTROLLER_LOG, FillMark, declare_source, set_aside};
use crate::membership::{Origin, Remembered};
use crate::raft::{KEY_FILL, KEY_PURGED, decode_purged};

/// What [`repair_journal`] does with the logs of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalRepairMode {
    /// Decides by how the node became a member: with other founders, or in a cluster that it joined, as with `Refill`. A node that founded
    /// its cluster alone is refused, since it may be the only one.
    Auto,
    /// Every log is filled from other nodes.
    Refill,
    /// Every log stays as it is: the node is the only one, and what the lost records said is lost.
    AcceptLoss,
}

/// Why a journal was not repaired.
#[derive(Debug, thiserror::Error)]
pub enum OfflineRepairError {
    /// The data directory.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The record of which cluster the node belongs to is lost.
    #[error(
        "the journal no longer says which cluster the node belongs to, so it cannot come back as the node that it was: move the data \
         directory away and start the node with an empty one; it joins as a new node in the place of this one"
    )]
    MembershipLost,
    /// The node founded its cluster alone, and may be the only one.
    #[error(
        "the node founded its cluster alone. If other nodes joined it since and hold replicas of its partitions, give --refill. If it is \
         the only node, give --accept-loss: every log stays as it is, and what the lost records said is lost: the newest changes of a \
         log's start after retention, and of which logs were being deleted"
    )]
    MayBeAlone,
    /// The declaration is not possible.
    #[error("{0}")]
    NotUsable(String),
}

/// What [`repair_journal`] did.
#[derive(Debug)]
pub struct JournalRepairReport {
    /// The damage; `None`: there is none, and nothing was changed.
    pub damage: Option<String>,
    /// Records that were kept.
    pub records: u64,
    /// Ranges of bytes (start, exclusive end) that cannot be read.
    pub gaps: Vec<(u64, u64)>,
    /// Logs that must be filled from other nodes.
    pub refill: Vec<LogId>,
    /// The folder with the damaged file.
    pub quarantine: Option<PathBuf>,
}

/// Replaces the damaged journal of a stopped node by one with everything that can still be read. Does nothing to a sound journal.
///
/// # Errors
/// See [`OfflineRepairError`]; nothing is changed then.
pub fn repair_journal(dir: &Path, mode: JournalRepairMode) -> Result<JournalRepairReport, OfflineRepairError> {
    let mut journal = SalvagedJournal::read(Arc::new(RealDisk), dir)?;
    let mut report = JournalRepairReport {
        damage: journal.damage().map(ToString::to_string),
        records: journal.records(),
        gaps: journal.gaps().to_vec(),
        refill: Vec::new(),
        quarantine: None,
    };
    if report.damage.is_none() {
        return Ok(report);
    }
    let remembered = journal.get(CONTROLLER_LOG, KEY_MEMBERSHIP);
    let remembered = remembered.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
    let own = remembered.and_then(|remembered| remembered.own_cluster).ok_or(OfflineRepairError::MembershipLost)?;
    let alone = matches!(&own.origin, Origin::Founded(founders) if founders.len() <= 1);
    match (mode, alone) {
        (JournalRepairMode::Auto, true) => return Err(OfflineRepairError::MayBeAlone),
        (JournalRepairMode::AcceptLoss, _) => {}
        (JournalRepairMode::Auto | JournalRepairMode::Refill, _) => {
            for id in journal.logs()? {
                let purged = journal.get(id, KEY_PURGED).and_then(|bytes| decode_purged(&bytes));
                if purged.map_or(0, |index| index + 1) < journal.start_index(id) {
                    // Raft needs the term of the entry before its first one, which is lost: the log is copied as a whole.
                    journal.forget_start(id);
                }
                journal.put(id, KEY_FILL, FillMark::NOTHING_KNOWN.encode());
                report.refill.push(id);
            }
        }
    }
    // The last raise may be lost, and what the node has shown to others unknown.
    let generation = StoredGeneration::given(StoredGeneration::number_beyond_all()).encode();
    journal.put(CONTROLLER_LOG, KEY_GENERATION, generation);
    report.quarantine = journal.write()?;
    Ok(report)
}

/// What a stopped node does with its log of a group whose source a person has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfflineRole {
    /// It is the source: it keeps its log.
    Source,
    /// It sets its log aside, and fills from the source.
    Copy,
}

/// Prepares the log of a group in the data directory of a stopped node. Returns the raft index after the last entry that it keeps.
///
/// # Errors
/// See [`OfflineRepairError`].
pub fn recover_offline(dir: &Path, id: LogId, role: OfflineRole) -> Result<u64, OfflineRepairError> {
    let store = Store::open(Arc::new(RealDisk), dir, StoreConfig::default())?;
    if !store.list_logs()?.contains(&id) {
        store.close()?;
        return Err(OfflineRepairError::NotUsable(format!("log {id}: the data directory has no such log")));
    }
    let done = match role {
        OfflineRole::Source => declare_source(&store, id).map_err(OfflineRepairError::NotUsable),
        OfflineRole::Copy => set_aside(&store, id).map(|cut| cut.next_index).map_err(OfflineRepairError::from),
    };
    store.close()?;
    done
}
