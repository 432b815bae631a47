//! Calls to the nodes of a cluster, as the trait [`Admin`]: over gRPC in production (`grpc.rs`), to a simulated cluster in tests
//! (`fake.rs`).
//!
//! Invariants:
//! - [`Admin::observe`] is a quorum read: it succeeds only when a majority of the voters of the controller group responds, each queried
//!   directly. Removed nodes in its result are committed state: no node reports a removal before it is committed.
//! - Every call is idempotent. After an error with an unknown outcome the caller repeats the call.
//!
//! Neighbours: `controller/` and `plugin/` call it; it calls `chronicle-client`. It names no Kubernetes type.

mod cluster_view;
#[cfg(test)]
pub(crate) mod fake;
mod grpc;
mod traced;

use chronicle_client::v1;
use futures::future::BoxFuture;

pub use cluster_view::{NodeAnswer, cluster_view};
pub use grpc::GrpcAdmin;
pub(crate) use grpc::{CallLimits, admin_error};
pub(crate) use traced::TracedAdmin;

use crate::plan::{CatchUp, ClusterView};

/// Client certificate of the operator and the CAs that it trusts, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsMaterial {
    /// Trusted CAs.
    pub ca: Vec<u8>,
    /// Client certificate.
    pub certificate: Vec<u8>,
    /// Private key of the certificate.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsMaterial")
    }
}

/// How to connect to the nodes of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Names of all nodes that may be running, each with its `HOST:PORT`.
    pub nodes: Vec<(String, String)>,
    /// TLS material; `None` for plaintext.
    pub tls: Option<TlsMaterial>,
}

/// Why a call to a cluster failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No majority of the voters responded.
    #[error("no majority of the voters responds: {0}")]
    NoMajority(String),
    /// Nodes of more than one cluster responded.
    #[error("the pods belong to different clusters: {0}")]
    TwoClusters(String),
    /// The cluster rejected the request; a retry alone does not help.
    #[error("{reason}: {message}")]
    Refused {
        /// A reason of docs/errors.md.
        reason: String,
        /// Human-readable message.
        message: String,
    },
    /// Any other failure; the caller may retry.
    #[error("{0}")]
    Failed(String),
}

impl AdminError {
    /// Returns whether the cluster rejected the request with this reason.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == wanted)
    }
}

/// Result of a call.
pub type AdminResult<'a, T> = BoxFuture<'a, Result<T, AdminError>>;

/// Calls to the nodes of a cluster.
pub trait Admin: Send + Sync + 'static {
    /// Returns the state of the cluster, confirmed by a majority of the voters.
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView>;
    /// Compares the replicas on these nodes with those on all nodes. Queries every node about every topic.
    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp>;
    /// Starts to transfer the leadership of a node (UUID) to other nodes.
    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Allows a node (UUID) to lead again.
    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Starts to reassign the replicas of a node (UUID) and then remove it. Returns when the operation has started.
    fn decommission<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;

    /// Returns the topic of this name, if it exists.
    fn topic<'a>(&'a self, target: &'a Target, name: &'a str) -> AdminResult<'a, Option<v1::Topic>>;
    /// Creates a topic; returns the existing one if there is one.
    fn create_topic<'a>(&'a self, target: &'a Target, request: v1::CreateTopicRequest) -> AdminResult<'a, v1::Topic>;
    /// Changes a topic.
    fn alter_topic<'a>(&'a self, target: &'a Target, request: v1::AlterTopicRequest) -> AdminResult<'a, v1::Topic>;
    /// Deletes a topic; succeeds if there is none.
    fn delete_topic<'a>(&'a self, target: &'a Target, name: &'a str) -> AdminResult<'a, ()>;

    /// Returns the access rules of a principal.
    fn rules<'a>(&'a self, target: &'a Target, principal: &'a str) -> AdminResult<'a, Vec<v1::Acl>>;
    /// Adds access rules.
    fn add_rules<'a>(&'a self, target: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()>;
    /// Removes exactly these access rules.
    fn remove_rules<'a>(&'a self, target: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()>;
    /// Returns the quota of a principal, if it has a dedicated one.
    fn quota<'a>(&'a self, target: &'a Target, principal: &'a str) -> AdminResult<'a, Option<v1::Quota>>;
    /// Sets or removes the quota of a principal.
    fn set_quota<'a>(&'a self, target: &'a Target, principal: &'a str, quota: Option<v1::Quota>)
    -> AdminResult<'a, ()>;
}
