//! The types that openraft is configured with, and their plain counterparts for the rest of the node.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use chronicle_log::EntryKind;
use openraft::raft::responder::Responder;
use openraft::{LogId, RaftTypeConfig};

use super::control_entry::ControlEntry;
use crate::telemetry::traces::EntryTrace;

/// A proposal of the leader: the payload of one data entry, or of a control entry.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal {
    /// What the payload is: [`EntryKind::Data`], or the kind of a [`ControlEntry`].
    pub kind: EntryKind,
    /// Number of offsets that the entry takes.
    pub record_count: u32,
    /// Largest timestamp of its records, in milliseconds since the Unix epoch.
    pub max_timestamp: i64,
    /// Concatenated record batches, or another format of the group's machine.
    pub payload: Bytes,
    /// The sampled requests in it, until the entry is in the log.
    pub trace: Option<Arc<EntryTrace>>,
    /// What the entry keeps reserved until it is flushed on this node.
    pub reservation: Option<Reservation>,
}

impl From<ControlEntry> for Proposal {
    fn from(entry: ControlEntry) -> Self {
        Self {
            kind: entry.kind(),
            record_count: 0,
            max_timestamp: 0,
            payload: entry.encode(),
            trace: None,
            reservation: None,
        }
    }
}

/// Something that is released when its last clone is dropped: the memory that an entry takes until it is both committed
/// and flushed on the leader. A majority may commit it without the leader's disk.
#[derive(Clone)]
pub struct Reservation(Arc<dyn Any + Send + Sync>);

impl Reservation {
    /// Wraps what is dropped at the release.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self(Arc::new(held))
    }
}

impl PartialEq for Reservation {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Reservation {}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} records, {} bytes", self.kind, self.record_count, self.payload.len())
    }
}

/// A node in a group's membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RaftMember {
    /// UUID of the data directory, as text.
    pub node_id: String,
    /// `HOST:PORT` of its data port.
    pub address: String,
}

/// A term and its leader, which a proposal is pinned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaderTerm {
    /// Raft term.
    pub term: u64,
    /// Raft id of the leader.
    pub leader: u64,
}

/// Configuration of every group, controller and partitions alike. Written out because the macro cannot set a responder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Bytes;
    type NodeId = u64;
    type Node = RaftMember;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Proposal, u64, RaftMember>;
    type Entry = openraft::impls::Entry<CommittedLeaderId, Self::Payload>;
    type AsyncRuntime = super::runtime::ConsensusRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

/// Calls a closure with the outcome of a proposal, on the state machine's task: one hop less than a channel.
pub(super) struct Callback<T>(pub(super) Box<dyn FnOnce(T) + Send>);

impl<T: Send + 'static> Responder<TypeConfig, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

pub(super) type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
pub(super) type RaftLogId = LogId<CommittedLeaderId>;
pub(super) type RaftEntry = <TypeConfig as RaftTypeConfig>::Entry;
pub(super) type RaftVote = <TypeConfig as RaftTypeConfig>::Vote;
pub(super) type RaftMembership = openraft::Membership<u64, RaftMember>;
pub(super) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, Bytes>;

pub(super) fn log_id(term: u64, leader: u64, index: u64) -> RaftLogId {
    LogId::new(CommittedLeaderId { term, node_id: leader }, index)
}

/// Plain form of a membership for disk: JSON, since it is small and rare.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct MembershipRecord {
    configs: Vec<std::collections::BTreeSet<u64>>,
    nodes: std::collections::BTreeMap<u64, RaftMember>,
}

impl MembershipRecord {
    pub(super) fn encode(membership: &RaftMembership) -> Bytes {
        serde_json::to_vec(&Self::from_membership(membership))
            .expect("a membership record has only string keys and plain values")
            .into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<RaftMembership, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| format!("membership entry: {e}"))?;
        record.into_membership()
    }

    pub(super) fn from_membership(membership: &RaftMembership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }

    pub(super) fn into_membership(self) -> Result<RaftMembership, String> {
        // The initial, empty membership is legal in a snapshot but not for `Membership::new`.
        if self.configs.iter().all(|config| config.is_empty()) {
            return Ok(RaftMembership::default());
        }
        RaftMembership::new(self.configs, self.nodes).map_err(|e| format!("membership entry: {e}"))
    }
}
