//! The Chronicle node.
//!
//! The write path, by folder: `listeners/` (bytes to requests) → `broker/` (admission, routing) → `partition/` (the
//! sequencer, one owner per raft group) → `raft/` (openraft adapters) → `chronicle-log` (disk).

pub mod broker;
pub mod config;
pub mod listeners;
pub mod ops;
pub mod telemetry;
