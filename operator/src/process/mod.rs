//! The process around the reconcilers: who acts (`lease.rs`), what runs (`run.rs`), what is counted (`metrics.rs`) and asked
//! (`health.rs`).

mod health;
mod lease;
mod metrics;
mod run;

pub use lease::{Leadership, LeaseSettings, hold};
pub use metrics::Metrics;
pub use run::{RunSettings, run};
