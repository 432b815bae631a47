//! `kubectl chronicle`: inspects clusters, and drains nodes.
//!
//! Promise: only `drain` changes anything, and it only transfers leadership. `plan` runs the reconciler of the operator with a client that
//! cannot write (`dry_run.rs`), so that its output is what the operator would do.
//!
//! Invariants:
//! - The plugin uses the rights of its user only. A missing right is reported with its verb and resource.
//! - It reads Secrets only to connect to the nodes as the operator does. It never prints or stores their content.
//! - The output distinguishes what the nodes reported now from what the operator reported last.
//!
//! ```text
//! cli.rs       flags, exit codes
//!   status.rs members.rs plan.rs drain.rs logs.rs bundle.rs    one command each; output.rs, duration.rs, log_lines.rs, mask.rs,
//!                                                            dry_run.rs, archive.rs help them
//!     session.rs   API server, cluster, certificates
//!       nodes.rs     calls to the nodes
//!         forward.rs   port-forwards through the API server
//! ```

mod archive;
mod bundle;
mod cli;
mod drain;
mod dry_run;
mod duration;
mod error;
mod forward;
mod log_lines;
mod logs;
mod mask;
mod members;
mod nodes;
mod output;
mod plan;
mod session;
mod status;
#[cfg(test)]
mod tests;

pub use cli::PluginCli;
pub use error::PluginError;
