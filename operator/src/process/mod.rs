//! The process around the reconcilers: who acts (`lease.rs`), what runs (`run.rs`), what is counted (`metrics.rs`) and asked
//! (`health.rs`).

mod health;
mod lease;
mod metrics;
mod run;

pub use lease::{LeaseSettings, Leadership, hold};
pub use metrics::Metrics;
pub use run::{RunSettings, run};
