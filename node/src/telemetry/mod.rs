//! What the node says about itself: metrics ([`Metrics`]), log lines ([`logging`]) and traces ([`traces`]).
//!
//! Neighbours: `ops/` serves the metrics; listeners, broker and engine report into them. Nothing here decides anything.

mod collect;
pub mod logging;
mod metrics;
pub mod traces;

pub use collect::collect_node;
pub use metrics::{Listener, Metrics, Operation, Samples};
