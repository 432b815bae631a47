//! The node's telemetry: metrics ([`Metrics`], [`RaftMetrics`]), log lines ([`logging`]) and traces ([`traces`]).
//!
//! Neighbours: `ops/` serves the metrics; listeners, broker, raft and engine report into them. Nothing here decides anything.

mod latency;
pub mod logging;
mod metrics;
mod process;
mod raft;
mod ring;
mod samples;
pub mod traces;

pub use metrics::{ApiOperation, Listener, Metrics};
pub use raft::{RaftMetrics, Stage};
pub use samples::Samples;
