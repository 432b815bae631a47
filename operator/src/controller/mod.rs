//! Reconcilers: read everything, decide, do one thing, report.
//!
//! Invariants:
//! - The object that is reconciled is read again at the start, past every cache, and its status is written with the resource
//!   version that was read: who decides on old news, or beside another operator, is refused by the API server.
//! - What an object should be is compared with what it is before it is written; when all is as it should be, nothing is written.
//! - An object that does not belong to the resource is never touched, whatever its name.
//! - An error decides by its class when to try again ([`ReconcileError::pause`]); a spec that makes no sense waits for an edit.

pub(crate) mod apply;
pub mod cluster;
pub(crate) mod compare;
mod context;
mod error;
mod part;
pub mod topic;
pub mod user;

#[cfg(test)]
pub(crate) mod world;

pub use apply::{Applier, Unmended};
pub use context::{Context, EventKind};
pub use error::{PASS_TIMEOUT, ReconcileError, is_conflict, is_not_found};

/// Name under which fields are owned in the API server.
pub const FIELD_MANAGER: &str = "chronicle-operator";
/// Finalizer of clusters, topics and users.
pub const FINALIZER: &str = "chronicle.dev/operator";
