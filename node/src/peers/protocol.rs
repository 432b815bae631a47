//! What both ends of a connection between nodes agree on: its version, its first bytes, its limits, and how a refusal looks.

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use uuid::Uuid;

/// Version of the protocol between nodes.
pub const PROTOCOL: u32 = 1;

/// Largest message between nodes: one raft entry comes alone when it is larger than a read, and an entry is at most this.
pub(super) const MESSAGE_BYTES_MAX: usize = 300 << 20;
/// HTTP/2 windows between nodes.
pub(super) const WINDOW_BYTES: u32 = 16 << 20;
/// The gRPC metadata key of a refusal that a node acts on, and its value for a node that was removed.
const REFUSAL_KEY: &str = "chronicle-refusal";
const NODE_REMOVED: &str = "node-removed";
/// What the text of that refusal begins with: the code that people, and nodes of earlier versions, know it by.
const NODE_REMOVED_CODE: &str = "NODE_REMOVED: ";

/// What a connection between nodes is for, said by its first 24 bytes (as many as HTTP/2's preface has).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Raft messages and calls.
    Consensus,
    /// Beats.
    Liveness,
    /// Requests of clients.
    Forwarding,
}

impl Purpose {
    /// The first bytes of such a connection.
    pub const fn preface(self) -> &'static [u8; 24] {
        match self {
            Self::Consensus => b"CHRONICLE PEER 1\r\n\r\n\r\n\r\n",
            Self::Liveness => b"CHRONICLE BEAT 1\r\n\r\n\r\n\r\n",
            Self::Forwarding => b"CHRONICLE CALL 1\r\n\r\n\r\n\r\n",
        }
    }
}

/// The answer to everything on a connection that begins as one of another version of this protocol, and a text for the log.
pub(crate) fn other_version(first: &[u8]) -> (Status, String) {
    let status = Status::failed_precondition(format!("PROTOCOL: this node speaks version {PROTOCOL}"));
    (
        status,
        format!(
            "PROTOCOL: it begins with {:?}, this node speaks version {PROTOCOL}",
            first.trim_ascii_end().escape_ascii().to_string()
        ),
    )
}

/// The other side will not have this node, whatever it asks for.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied)
}

/// The refusal of a node that was removed from the cluster.
pub(super) fn removed(why: &str) -> Status {
    let mut status = Status::permission_denied(format!("{NODE_REMOVED_CODE}{why}"));
    status.metadata_mut().insert(REFUSAL_KEY, MetadataValue::from_static(NODE_REMOVED));
    status
}

/// The reason, when a peer refuses this node because it was removed from the cluster.
pub(super) fn removal(status: &Status) -> Option<&str> {
    let removed = status.metadata().get(REFUSAL_KEY).is_some_and(|refusal| refusal == NODE_REMOVED);
    removed.then(|| status.message().trim_start_matches(NODE_REMOVED_CODE))
}

/// A group's name on the wire.
pub(crate) fn wire_id(id: LogId) -> proto::GroupId {
    proto::GroupId { topic: id.topic.as_bytes().to_vec().into(), partition: id.partition }
}

pub(super) fn group_id(group: Option<proto::GroupId>) -> Result<LogId, Status> {
    let group = group.ok_or_else(|| Status::invalid_argument("group: missing: must be given"))?;
    let topic =
        Uuid::from_slice(&group.topic).map_err(|_| Status::invalid_argument("group.topic: must be 16 bytes"))?;
    Ok(LogId { topic, partition: group.partition })
}

/// The group that a request names.
pub(crate) fn named_group(group: &Option<proto::GroupId>) -> Result<LogId, Status> {
    group_id(group.clone())
}
