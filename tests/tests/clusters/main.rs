//! Clusters of real processes: founded, joined by clients, grown, cut apart, killed, damaged, secured.
//!
//! `.ci/test` runs most of it a second time with every cluster secured. Programs of their own, beside this folder:
//! `prometheus.rs` and `traces.rs` start other servers, and `traces.rs` sets the tracer of its whole process.

mod access;
mod cli;
mod failover;
mod forwarding;
mod founding;
mod harm;
mod in_doubt;
mod members;
mod nemesis;
mod network;
mod refused;
mod repair;
mod rolled_back;
mod sources;
mod tls;
