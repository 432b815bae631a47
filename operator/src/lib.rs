//! The Kubernetes operator of Chronicle.
//!
//! Promise: a ChronicleCluster becomes what its spec says, one step at a time, without losing an acknowledged record; an operator that
//! is killed anywhere goes on where it was; a cluster that is as it should be costs no write to the API server.
//!
//! ```text
//! process/     who acts, what runs, health and metrics
//!   controller/  reads, decides, does one thing, reports: clusters, topics, users
//!     build/       from a spec to the objects of a cluster; pure
//!     plan/        from what is observed to the next step; pure
//!     admin/       what is asked of the nodes
//! api/         the resources
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod build;
pub mod cli;
pub mod controller;
pub mod plan;
pub mod plugin;
pub mod process;
mod quantity;
