//! The Chronicle node.
//!
//! The write path, by folder: `listeners/` (bytes to requests) → `broker/` (admission, routing) → `partition/` (the
//! sequencer, one owner per raft group) → `raft/` (openraft adapters) → `chronicle-log` (disk).

#![forbid(unsafe_code)]

pub mod broker;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod discovery;
pub mod groups;
pub mod host;
pub mod identity;
pub mod listeners;
pub mod membership;
pub mod metadata;
pub mod model;
pub mod partition;
pub mod peers;
pub mod raft;
pub mod runtime;
pub mod security;
pub mod telemetry;

/// Counts what decoders allocate, for fuzzing.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: chronicle_fuzz::CountingAllocator = chronicle_fuzz::CountingAllocator;
