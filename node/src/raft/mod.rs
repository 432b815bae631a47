//! Consensus: openraft over `chronicle-log`.
//!
//! Promise: nothing outside this folder names an openraft type, so that it can be upgraded or replaced in one place.
//! The rest of the node uses [`RaftGroup`] (one raft group on this node), [`Machine`] (applies a group's committed entries)
//! and [`Proposal`].
//!
//! Neighbours: `partition/` and `controller/` above; `chronicle-log` below.

mod checkpoint;
mod contact;
mod control_entry;
mod doubt;
#[cfg(test)]
mod doubt_tests;
mod election;
mod group;
mod lease;
#[cfg(test)]
mod lease_tests;
mod network;
#[cfg(test)]
mod reservation_tests;
mod runtime;
mod settling;
mod state_machine;
mod store;
#[cfg(test)]
mod tests;
mod traced;
mod type_config;
mod wire;
#[cfg(test)]
mod wire_fuzz;

pub(crate) use checkpoint::checkpoint_index;
pub use control_entry::{ControlEntry, StartReason};
pub(crate) use doubt::KEY_DOUBT;
pub use doubt::TailDoubt;
pub use group::{
    HEARTBEAT, ProposeError, ProposeResult, RaftGroup, RaftGroupConfig, RaftGroupError, RaftGroupStatus, Role, Roles,
};
#[cfg(test)]
pub(crate) use lease::LEASE;
pub use lease::LeasePromise;
pub use network::Transport;
pub use state_machine::{CommittedEntry, Machine};
pub(crate) use store::{
    KEY_DECLARED, KEY_FILL, KEY_PURGED, KEY_VOTE, decode_purged, encode_position, purged_index, stored_term, vote_for,
};
pub use type_config::{LeaderTerm, Proposal, RaftMember, Reservation};
pub(crate) use wire::{entry_in, entry_out};
