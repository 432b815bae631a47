//! The process around the reconcilers: who acts (`lease.rs`), what runs (`run.rs`), what is counted (`metrics.rs`), traced
//! (`traces.rs`) and asked (`health.rs`).

mod health;
mod lease;
mod metrics;
mod run;
mod traces;

pub use lease::{Leadership, LeaseSettings, hold};
pub use metrics::Metrics;
pub use run::{RunSettings, run};
pub use traces::{SPANS, Traces, TracesError};
