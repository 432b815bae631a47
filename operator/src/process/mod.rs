//! The process around the reconcilers: leader election (`lease.rs`), watches and workers (`run.rs`), and health endpoints (`health.rs`).

mod health;
mod lease;
mod run;

pub use lease::{Leadership, LeaseSettings, run_election};
pub use run::{RunSettings, run};
