//! The cluster's metadata: nodes, topics, placement, operations, access rules and quotas, and the plans made of them.
//!
//! The controller group replicates it; here is what it consists of and how it changes. Pure: no clock, no randomness, no I/O, so
//! that every replica computes the same from the same commands.
//!
//! - `controller_state.rs`: [`ControllerState`], and the [`ControllerCommand`]s that change it; `refusal.rs`: why one changes nothing;
//! - `entities.rs`: the nodes, placements and operations in it;
//! - `nodes.rs`, `disk_generation.rs`, `placement.rs`, `operations.rs`, `acl_commands.rs`: how commands change each part of it;
//! - `balancer.rs`, `voters.rs`: which commands the leader should propose next, and which nodes should vote.
//!
//! Never names raft, peers, or anything that runs. Neighbours: `controller/` replicates it, `cluster/` reads it.

mod access_rules;
mod acl_commands;
mod balancer;
#[cfg(test)]
mod commands_fuzz;
mod controller_state;
mod disk_generation;
mod entities;
#[cfg(test)]
mod fixtures;
mod nodes;
mod operations;
mod placement;
mod refusal;
mod voters;

pub use access_rules::AccessRules;
pub use acl_commands::{QUOTAS_MAX, RULES_BYTES_MAX, RULES_MAX};
pub(crate) use balancer::plan;
pub use balancer::{BalancerConfig, ClusterObservation};
pub use controller_state::{CommandOutcome, ControllerCommand, ControllerState, DeletedTopic};
pub use entities::{DiskGeneration, NodeInfo, NodeState, Operation, OperationKind, OperationState, Placement};
pub use operations::{remaining, waiting_for};
pub use placement::{designated_leader, leader_candidates};
pub use refusal::Refusal;
pub(crate) use voters::controller_voters;
