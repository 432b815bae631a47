//! What is said to other nodes, and how it can fail.

use std::fmt;

use chronicle_proto::internal::{
    FoundRequest, FoundResponse, HelloRequest, HelloResponse, JoinRequest, JoinResponse, PromiseRequest,
    PromiseResponse,
};
use futures::future::BoxFuture;

/// Calls to the node at a `HOST:PORT`. Each may be dropped at any time; `Membership` sets the time-outs.
pub trait Peers: Send + Sync {
    /// Who is there.
    fn hello<'a>(&'a self, address: &'a str, request: HelloRequest) -> BoxFuture<'a, Result<HelloResponse, PeerError>>;

    /// Asks to promise.
    fn promise<'a>(
        &'a self,
        address: &'a str,
        request: PromiseRequest,
    ) -> BoxFuture<'a, Result<PromiseResponse, PeerError>>;

    /// Says that all have promised.
    fn found<'a>(&'a self, address: &'a str, request: FoundRequest) -> BoxFuture<'a, Result<FoundResponse, PeerError>>;

    /// Asks to be taken in.
    fn join<'a>(&'a self, address: &'a str, request: JoinRequest) -> BoxFuture<'a, Result<JoinResponse, PeerError>>;
}

/// Why a call brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// Nobody answered, or the answer was that it does not work now. Whether the call had an effect is unknown.
    #[error("{0}")]
    Unavailable(String),
    /// A `Join` was refused for good.
    #[error("{0}: {1}")]
    Refused(JoinRefusal, String),
}

/// Why a cluster does not take a node in, and will not later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRefusal {
    /// The node was a member and has been removed.
    Removed,
    /// The node belongs to another cluster.
    ForeignCluster,
    /// A living member has the same UUID, name or address.
    Duplicate,
    /// The cluster speaks another version of the protocol.
    Protocol,
}

impl fmt::Display for JoinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the node was removed from it",
            Self::ForeignCluster => "the node belongs to another cluster",
            Self::Duplicate => "another living node is already this one",
            Self::Protocol => "the versions do not fit together",
        })
    }
}
