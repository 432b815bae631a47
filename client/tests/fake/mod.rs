//! Fake nodes in memory, which the client reaches through its connector.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test program uses a part of it")]

pub mod multi_node;
pub mod single_node;

pub use multi_node::{Cluster, Reach};
pub use single_node::{Fault, Node};
