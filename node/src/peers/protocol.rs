//! The protocol between nodes: version, preface, limits, and the form of rejections.

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use uuid::Uuid;

use super::generations::RolledBack;

/// Version of the protocol between nodes.
pub const PROTOCOL: u32 = 1;

/// Largest message between nodes. A raft entry that is larger than one read is sent alone, and no entry is larger than
/// this.
pub(super) const MESSAGE_BYTES_MAX: usize = 300 << 20;
/// HTTP/2 windows between nodes.
pub(super) const WINDOW_BYTES: u32 = 16 << 20;
/// The gRPC metadata key of a rejection that a node acts on, and its values.
const REFUSAL_KEY: &str = "chronicle-refusal";
const NODE_REMOVED: &str = "node-removed";
const ROLLED_BACK: &str = "rolled-back";
/// Beginning of the texts of these rejections: codes that people and nodes of earlier versions recognise.
const NODE_REMOVED_CODE: &str = "NODE_REMOVED: ";
const ROLLED_BACK_CODE: &str = "ROLLED_BACK: ";

/// Why other nodes reject this node permanently: it must stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expulsion {
    /// It was removed from the cluster; with the reason.
    Removed(String),
    /// Its data directory was rolled back; with what was seen and what to do.
    RolledBack(String),
}

/// Purpose of a connection between nodes. Its first 24 bytes, as many as in HTTP/2's preface, contain it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Raft messages and calls.
    Consensus,
    /// Heartbeats.
    Liveness,
    /// Forwarded requests of clients.
    Forwarding,
}

impl Purpose {
    /// Returns the first bytes of such a connection.
    pub const fn preface(self) -> &'static [u8; 24] {
        match self {
            Self::Consensus => b"CHRONICLE PEER 1\r\n\r\n\r\n\r\n",
            Self::Liveness => b"CHRONICLE BEAT 1\r\n\r\n\r\n\r\n",
            Self::Forwarding => b"CHRONICLE CALL 1\r\n\r\n\r\n\r\n",
        }
    }
}

/// Returns the response to every request on a connection with the preface of another protocol version, and a text for
/// the log.
pub(crate) fn other_version(first: &[u8]) -> (Status, String) {
    let status = Status::failed_precondition(format!("PROTOCOL: this node speaks version {PROTOCOL}"));
    (
        status,
        format!(
            "PROTOCOL: the connection begins with {:?}, this node speaks version {PROTOCOL}",
            first.trim_ascii_end().escape_ascii().to_string()
        ),
    )
}

/// Whether the peer rejects every request of this node.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied)
}

/// Returns the rejection of a node that was removed from the cluster.
pub(super) fn removed(why: &str) -> Status {
    expelled(NODE_REMOVED, format!("{NODE_REMOVED_CODE}{why}"))
}

/// Returns the rejection of a node whose data directory was rolled back.
pub(super) fn rolled_back(why: &RolledBack) -> Status {
    expelled(ROLLED_BACK, format!("{ROLLED_BACK_CODE}{why}"))
}

fn expelled(reason: &'static str, text: String) -> Status {
    let mut status = Status::permission_denied(text);
    status.metadata_mut().insert(REFUSAL_KEY, MetadataValue::from_static(reason));
    status
}

/// Returns the reason, when a peer rejects this node permanently.
pub(super) fn expulsion(status: &Status) -> Option<Expulsion> {
    let why = |code: &str| status.message().trim_start_matches(code).to_owned();
    match status.metadata().get(REFUSAL_KEY)?.to_str().ok()? {
        NODE_REMOVED => Some(Expulsion::Removed(why(NODE_REMOVED_CODE))),
        ROLLED_BACK => Some(Expulsion::RolledBack(why(ROLLED_BACK_CODE))),
        _ => None,
    }
}

/// Returns the id of a group on the wire.
pub(crate) fn wire_id(id: LogId) -> proto::GroupId {
    proto::GroupId { topic: id.topic.as_bytes().to_vec().into(), partition: id.partition }
}

pub(super) fn group_id(group: Option<proto::GroupId>) -> Result<LogId, Status> {
    let group = group.ok_or_else(|| Status::invalid_argument("group: missing: must be given"))?;
    let topic =
        Uuid::from_slice(&group.topic).map_err(|_| Status::invalid_argument("group.topic: must be 16 bytes"))?;
    Ok(LogId { topic, partition: group.partition })
}

/// Returns the group that a request names.
pub(crate) fn named_group(group: &Option<proto::GroupId>) -> Result<LogId, Status> {
    group_id(group.clone())
}
