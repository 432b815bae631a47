//! Reconcilers of clusters, topics and users: read the state, decide, do one step, report it in the status.
//!
//! Invariants:
//! - A reconcile reads its resource again from the API server, not from a cache, and writes the status with the resource version that it
//!   read. The API server then rejects decisions on stale state, or of a second operator.
//! - An object is written only if it differs from the desired object. A converged resource costs no write.
//! - An object without an owner reference to the resource is never changed or deleted, whatever its name.
//! - The class of an error decides on the retry ([`ReconcileError::retry_delay`]). An invalid spec waits for a change.
//!
//! Neighbours: `process/run.rs` calls the `reconcile` functions; `build/` and `plan/` decide, `admin/` reaches the nodes.

pub(crate) mod apply;
mod child;
pub mod cluster;
pub(crate) mod compare;
mod context;
mod error;
pub mod topic;
pub mod user;

#[cfg(test)]
pub(crate) mod fake_kubernetes;

pub use apply::{Applier, LiveObjects, ObjectKey, PersistentDrift};
pub use context::{Context, EventKind};
pub use error::{RECONCILE_TIMEOUT, ReconcileError, is_conflict, is_not_found};

/// Name under which fields are owned in the API server.
pub const FIELD_MANAGER: &str = "chronicle-operator";
/// Finalizer of clusters, topics and users.
pub const FINALIZER: &str = "chronicle.dev/operator";
