//! Authentication by TLS certificates, and the rules and quotas that apply to a principal.
//!
//! Promise: without a certificate of the cluster's CA, a client is anonymous and a connection is not accepted as a
//! peer's. `broker/` and `groups/` check here what a principal may do (`for_caller.rs` in each).
//!
//! - `material.rs`: certificate, key and CAs, from files to TLS configurations;
//! - `tls.rs`: the current certificates, and handshakes; `handshake.rs`: their outcomes;
//! - `acl/`: access rules and their evaluator; `quotas.rs`: rate limits of a principal;
//! - `budget.rs`: limits of bytes in flight; `caller.rs`: the client that sent a request.
//!
//! Neighbours: `identity/` reads names from certificates; `listeners/` accepts through this folder, `peers/` connects
//! through it; `broker/authorizer.rs` applies rules and quotas.

pub mod acl;
pub(crate) mod budget;
mod caller;
mod handshake;
mod material;
mod quotas;
#[cfg(test)]
mod tests;
mod tls;

pub use acl::{AclFilter, AclRule, Action, Effect, PatternKind, ResourceKind};
pub use caller::Caller;
pub use handshake::{HandshakeError, HandshakeOutcome};
pub use material::MaterialError;
pub use quotas::{Metered, Quota};
pub(crate) use quotas::{OverQuota, Quotas};
pub use tls::{NodeNames, Remote, Tls};
