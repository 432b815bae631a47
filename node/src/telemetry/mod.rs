//! What the node says about itself: metrics ([`Metrics`]) and log lines ([`logging`]).
//!
//! Neighbours: `ops/` serves the metrics; listeners, broker and engine report into them. Nothing here decides anything.

pub mod logging;
mod metrics;
mod node;

pub use metrics::{Listener, Metrics, Operation, Samples};
pub use node::register_node;
