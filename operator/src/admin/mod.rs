//! What the operator asks of a cluster's nodes, as a trait, so that reconcilers can be tested against a made-up cluster
//! (`fake.rs`). The real one is [`Nodes`] (`nodes.rs`).
//!
//! Invariants:
//! - [`Admin::observe`] is a quorum read: it answers only when a majority of the controller group's voters did, asked one by one,
//!   and agreed on the cluster. What it says of removed nodes is agreed state, which no node can know too early.
//! - A call that may have been carried out is an error like any other: every call may be made again.

#[cfg(test)]
pub(crate) mod fake;
mod nodes;
mod traced;
mod view;

use chronicle_client::v1;
use futures::future::BoxFuture;

pub use nodes::Nodes;
pub(crate) use nodes::{Patience, refused};
pub(crate) use traced::Traced;
pub use view::{Answer, combine};

use crate::plan::{CatchUp, ClusterView};

/// Certificates that the operator shows and trusts, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsMaterial {
    /// CAs.
    pub ca: Vec<u8>,
    /// The operator's certificate.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsMaterial")
    }
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Names of the nodes that may run, with `HOST:PORT` of each.
    pub nodes: Vec<(String, String)>,
    /// How; `None`: in plaintext.
    pub tls: Option<TlsMaterial>,
}

/// Why a cluster could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No majority of the voters answered.
    #[error("no majority of the voters responds: {0}")]
    NoMajority(String),
    /// Nodes of more than one cluster answered.
    #[error("the pods belong to different clusters: {0}")]
    TwoClusters(String),
    /// The cluster understood, and refuses for a reason that time alone does not mend.
    #[error("{reason}: {message}")]
    Refused {
        /// A reason of docs/errors.md.
        reason: String,
        /// For people.
        message: String,
    },
    /// Try again.
    #[error("{0}")]
    Failed(String),
}

impl AdminError {
    /// A refusal with this reason.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == wanted)
    }
}

/// Result of a call.
pub type AdminResult<'a, T> = BoxFuture<'a, Result<T, AdminError>>;

/// The calls.
pub trait Admin: Send + Sync + 'static {
    /// What a majority of the cluster says about itself.
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView>;
    /// Whether these nodes have all records that any node has. Asks every node about every topic.
    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp>;
    /// Has a node (UUID) hand over what it leads.
    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Lets a node (UUID) lead again.
    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Has a node's (UUID) replicas moved away and the node removed; done when it has begun.
    fn decommission<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;

    /// A topic, if there is one of this name.
    fn topic<'a>(&'a self, target: &'a Target, name: &'a str) -> AdminResult<'a, Option<v1::Topic>>;
    /// Makes a topic; one that is there is the answer.
    fn create_topic<'a>(&'a self, target: &'a Target, request: v1::CreateTopicRequest) -> AdminResult<'a, v1::Topic>;
    /// Changes a topic.
    fn alter_topic<'a>(&'a self, target: &'a Target, request: v1::AlterTopicRequest) -> AdminResult<'a, v1::Topic>;
    /// Deletes a topic; none is fine.
    fn delete_topic<'a>(&'a self, target: &'a Target, name: &'a str) -> AdminResult<'a, ()>;

    /// Rules of a principal.
    fn rules<'a>(&'a self, target: &'a Target, principal: &'a str) -> AdminResult<'a, Vec<v1::Acl>>;
    /// Adds rules.
    fn add_rules<'a>(&'a self, target: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()>;
    /// Takes rules away, each exactly.
    fn remove_rules<'a>(&'a self, target: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()>;
    /// Quota of a principal, if it has one of its own.
    fn quota<'a>(&'a self, target: &'a Target, principal: &'a str) -> AdminResult<'a, Option<v1::Quota>>;
    /// Sets or removes the quota of a principal.
    fn set_quota<'a>(&'a self, target: &'a Target, principal: &'a str, quota: Option<v1::Quota>)
    -> AdminResult<'a, ()>;
}
