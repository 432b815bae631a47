//! The process around the reconcilers: leader election (`lease.rs`), watches and workers (`run.rs`), metrics (`metrics.rs`), traces
//! (`traces.rs`) and health endpoints (`health.rs`).

mod health;
mod lease;
mod metrics;
mod run;
mod traces;

pub use lease::{Leadership, LeaseSettings, hold};
pub use metrics::Metrics;
pub use run::{RunSettings, run};
pub use traces::{SPANS, Traces, TracesError};
