//! The calls to other nodes, and how they can fail.

use std::fmt;

use chronicle_proto::internal::{
    FoundRequest, FoundResponse, HelloRequest, HelloResponse, JoinRequest, JoinResponse, PromiseRequest,
    PromiseResponse,
};
use futures::future::BoxFuture;

/// Calls to the node at a `HOST:PORT`. Each may be dropped at any time; `Membership` sets the time-outs.
pub trait MembershipRpc: Send + Sync {
    /// Asks a node for its state (`Hello`).
    fn hello<'a>(&'a self, address: &'a str, request: HelloRequest) -> BoxFuture<'a, Result<HelloResponse, PeerError>>;

    /// Asks a node to promise a proposal.
    fn promise<'a>(
        &'a self,
        address: &'a str,
        request: PromiseRequest,
    ) -> BoxFuture<'a, Result<PromiseResponse, PeerError>>;

    /// Reports to a node that all founders have promised.
    fn found<'a>(&'a self, address: &'a str, request: FoundRequest) -> BoxFuture<'a, Result<FoundResponse, PeerError>>;

    /// Asks a node of a cluster to admit this node.
    fn join<'a>(&'a self, address: &'a str, request: JoinRequest) -> BoxFuture<'a, Result<JoinResponse, PeerError>>;
}

/// Why a call has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// No answer, or the node cannot serve the call now. Whether the call had an effect is unknown.
    #[error("{0}")]
    Unavailable(String),
    /// A `Join` was permanently refused.
    #[error("{0}: {1}")]
    Refused(JoinRefusal, String),
}

/// Why a cluster permanently refuses a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRefusal {
    /// The node was a member and has been removed.
    Removed,
    /// The node belongs to another cluster.
    ForeignCluster,
    /// A live member has the same UUID, name or address.
    Duplicate,
    /// The cluster uses another version of the protocol.
    Protocol,
    /// The node's data directory is older than one that it has shown before.
    RolledBack,
}

impl JoinRefusal {
    const ALL: [Self; 5] = [Self::Removed, Self::ForeignCluster, Self::Duplicate, Self::Protocol, Self::RolledBack];

    /// The word for this refusal on the wire and in errors.
    pub fn code(self) -> &'static str {
        match self {
            Self::Removed => "REMOVED",
            Self::ForeignCluster => "FOREIGN_CLUSTER",
            Self::Duplicate => "DUPLICATE",
            Self::Protocol => "PROTOCOL",
            Self::RolledBack => "ROLLED_BACK",
        }
    }

    /// Returns the refusal with this [`JoinRefusal::code`]; `None` for a code of a later version.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

impl fmt::Display for JoinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the node was removed from it",
            Self::ForeignCluster => "the node belongs to another cluster",
            Self::Duplicate => "a live node has its UUID, name or address",
            Self::Protocol => "the protocol versions are incompatible",
            Self::RolledBack => "its data directory was rolled back",
        })
    }
}
