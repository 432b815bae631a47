//! `kubectl chronicle`: what the operator does and sees, for people.
//!
//! Promise: nothing but `drain` changes anything, and `drain` only has a node hand over what it leads. `plan` runs the operator's own
//! reconciler behind a client that cannot write (`rehearse.rs`), so that what it says is what the operator would do.
//!
//! Invariants:
//! - Nothing is read that the person's own rights do not allow; what is not allowed is said with its verb and resource.
//! - Secrets are read for one thing only, to talk to the nodes as the operator does; nothing of them is printed or kept.
//! - Whether something was asked of the nodes, or is what the operator wrote down last, is said beside it.
//!
//! ```text
//! cli.rs       flags, exit codes
//!   status.rs members.rs plan.rs drain.rs logs.rs bundle.rs    one command each; output.rs, logs/, mask.rs beside them
//!     access.rs    API server, cluster, certificates
//!       nodes.rs     the nodes, as the operator asks them
//!         forward.rs   byte streams through the API server
//! ```

mod access;
mod archive;
mod bundle;
mod cli;
mod drain;
mod error;
mod forward;
mod lines;
mod logs;
mod mask;
mod members;
mod nodes;
mod output;
mod plan;
mod rehearse;
mod status;
#[cfg(test)]
mod tests;

pub use cli::Cli;
pub use error::Failure;
