//! Who is at the other end of a connection: TLS, certificates, and what they say.
//!
//! Promise: who is not proved by a certificate of the cluster's CA is anonymous to clients' APIs and nobody to peers. What a
//! principal may do is asked for in `broker/for_caller.rs` and `groups/for_caller.rs`, and answered here.
//!
//! - `identity.rs`: the name that a certificate gives, and the rules that make a principal of it;
//! - `nodes.rs`: which nodes a certificate may speak for;
//! - `material.rs`: certificate, key and CAs, from files to configurations of TLS;
//! - `tls.rs`: what of it is in force, and handshakes; `handshake.rs`: how they end;
//! - `acl/`: rules of who may do what, and the pure evaluator of them;
//! - `authorizer.rs`: what the node answers, by the rules and quotas that are agreed at the moment;
//! - `audit.rs`: what is written of refusals and of changes; `quotas.rs`: how much a principal may do.
//!
//! Neighbours: `listeners/` accepts through it, `peers/` connects through it.

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
pub use handshake::{HandshakeError, Outcome};
pub use material::MaterialError;
pub use quotas::{Metered, Quota};
pub(crate) use quotas::{OverQuota, Quotas};
pub use tls::{NodeNames, Remote, Tls};
