//! The Kubernetes operator for Chronicle.
//!
//! Promise: the operator brings a ChronicleCluster to its desired state, one step at a time, without losing an acknowledged record. An
//! operator that is killed at any point resumes from the recorded status. A converged cluster costs no write to the API server.
//!
//! ```text
//! process/     leader election, watches, health
//!   controller/  reconcilers for clusters, topics and users: read, decide, do one step, report
//!     build/       renders the objects of a cluster from its spec; pure
//!     plan/        decides on the next step from desired, recorded and observed state; pure
//!     admin/       calls to the nodes of a cluster
//! api/         the custom resources
//! telemetry/   metrics and traces
//! plugin/      `kubectl chronicle`
//! ```
//!
//! Imports run downwards: `plan` and `build` name neither a client nor a clock, and `api` and `telemetry` name no other module.
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
pub mod telemetry;
