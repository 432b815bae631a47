//! The way to other nodes: messages of raft groups, calls between nodes, and who is alive.
//!
//! A node keeps up to four connections to each peer, all to the peer's one data port, told apart by their first bytes
//! ([`Purpose`]): the *exchange* stream that carries the messages of all groups, a channel for *calls* (commands, log
//! transfer), the *beat* stream, and a channel for clients' requests that are *forwarded*. The listener hands such connections
//! over to the runtime that they belong to: consensus or liveness, neither of which the API can starve, or that of the API.
//!
//! Invariants:
//! - Raft messages under way to one peer are bounded in bytes (`cluster.peer-window-bytes`), and so are forwarded requests.
//! - A call reaches the node that it was meant for, of this cluster, or is refused by name (see `peer.proto`).
//! - Liveness is a property of nodes: groups have no timers of their own.
//!
//! - `transport.rs`: who the peers are, and the connections to them; `channel.rs`, `link.rs`, `forwarding.rs`: the kinds of these;
//! - `service.rs`: the receiving side; `liveness.rs`: beats; `protocol.rs`: what both ends agree on.
//!
//! Never names raft, partitions or the controller: what they answer comes in by [`Handler`]. Neighbours: `listeners/` accepts;
//! `raft/` and `cluster/` ask.

mod channel;
mod forwarding;
mod link;
mod liveness;
mod protocol;
mod repeats;
mod service;
mod transport;

pub use channel::{Client, Me};
pub(crate) use forwarding::{ForwardError, READ_BYTES_MAX};
pub use liveness::{Liveness, LivenessConfig};
pub use protocol::{PROTOCOL, Purpose};
pub(crate) use protocol::{named_group, other_version, wire_id};
pub use service::{Handler, PeerServer, PullStream};
pub use transport::{AskError, Known, Peers};
