//! Metrics and traces of the operator. It decides nothing and names no other module.

mod metrics;
mod traces;

pub use metrics::Metrics;
pub use traces::{SPANS, Traces, TracesError};
