//! Fake nodes in memory, which the client reaches through its connector.

#![allow(unreachable_pub, reason = "a module of a test program: what its siblings use")]

mod multi_node;
mod single_node;

pub(crate) use multi_node::{Cluster, Reach};
pub(crate) use single_node::{Fault, Node};
