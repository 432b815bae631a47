//! Fake nodes in memory, which the client reaches through its connector.

pub mod multi_node;
pub mod single_node;

pub use multi_node::{Cluster, Reach};
pub use single_node::{Fault, Node};
