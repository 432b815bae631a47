//! Communication with other nodes: messages of raft groups, calls between nodes, and failure detection.
//!
//! A node keeps up to four connections to each peer, all to the peer's data port, distinguished by their first bytes
//! ([`Purpose`]): the *exchange* stream with the messages of all groups, a channel for *calls* (commands, log
//! transfer), the *heartbeat* stream, and a channel for *forwarded* requests of clients. The listener moves such a
//! connection to its runtime: consensus or liveness, neither of which the API can starve, or that of the API.
//!
//! Invariants:
//! - Raft messages in flight to one peer are bounded in bytes (`cluster.peer-window-bytes`), and so are forwarded
//!   requests.
//! - A call reaches the node and cluster that it is addressed to, or is rejected with a reason (see `peer.proto`).
//! - A node whose data directory was rolled back is neither answered nor believed.
//! - Liveness is a property of nodes: groups have no timers of their own.
//!
//! - `transport.rs`: the list of peers and the connections to them; `channel.rs`, `link.rs`, `forwarding.rs`: the kinds
//!   of these;
//! - `service.rs`: the receiving side; `liveness.rs`: heartbeats; `protocol.rs`: versions and prefaces; `repeats.rs`:
//!   limits repeated log lines; `generations.rs`: which data directories were rolled back.
//!
//! Never names raft, partitions or the controller: they serve requests through [`Handler`]. Neighbours: `listeners/`
//! accepts; `raft/` and `cluster/` send requests.

mod channel;
mod forwarding;
mod generations;
mod link;
mod liveness;
mod protocol;
mod repeats;
mod service;
mod transport;

pub use channel::{Client, Me};
pub(crate) use forwarding::{ForwardError, READ_BYTES_MAX};
pub use generations::{Generations, RolledBack};
pub use liveness::{Liveness, LivenessConfig};
pub use protocol::{Expulsion, PROTOCOL, Purpose};
pub(crate) use protocol::{named_group, other_version, wire_id};
pub use service::{Handler, PeerServer, PullStream};
pub use transport::{AskError, Known, Peers};
