//! Cluster membership of this node: bootstrapping a cluster, joining one, and finding its own again after a restart.
//!
//! [`Membership`] answers `Hello`, `Promise` and `Found` from the first moment on. [`Membership::establish`] runs once at
//! start, until the node knows which cluster it belongs to.
//!
//! # How nodes bootstrap a cluster
//!
//! In rounds: resolve the addresses, send hello to all of them, decide. When any node has a cluster, this node joins that one and
//! never bootstraps. Otherwise, when at least `bootstrap-expect` nodes respond, all of them without a cluster, with the same
//! `bootstrap-expect`, and reporting the same set of nodes, the node with the smallest UUID coordinates a two-phase commit
//! among that set, the *founders*. The proposal is named by the UUID of the future cluster.
//!
//! 1. The coordinator promises, durably, and then asks every other founder to promise. A node holds at most one promise.
//! 2. When all founders have promised, the coordinator enters the cluster, durably, and sends `Found` to the others. Only a node
//!    that holds the promise accepts it. A founder that misses the message enters when it sees a founder in the cluster of its
//!    promise.
//!
//! A node that refuses a proposal, or releases its promise, records that and refuses the proposal permanently. So once all have
//! promised, any node that knows it may complete the bootstrap, with the same result; and once one has refused, no node can.
//! A lost message, a crash or a restart at any point leads to one of these:
//!
//! - A coordinator that restarts continues with the same proposal.
//! - A coordinator that is *gone* ([`GONE_AFTER`]) is replaced by a founder that promised: it asks the remaining founders to
//!   promise, and bootstraps. The old coordinator is a founder too; if it lost its disk, it returns as another node, and joins.
//! - A founder is gone before the coordinator has its promise: the coordinator aborts the proposal. The nodes that promised
//!   release their promise when they see the abort, and the coordinator drops the proposal when it sees that one of them has.
//! - The coordinator and another founder are both gone, or the coordinator of two: no remaining node can know whether they
//!   bootstrapped. The others wait and log which nodes they wait for. When another node answers at the address of one of them,
//!   its disk is lost, and so is what it knew. Otherwise an operator decides: start them again, or empty the data
//!   directories, which contain no records yet.
//!
//! A node is gone when it has neither answered nor called for that long, and no node that answers sees it.
//!
//! # Guarantees
//!
//! - Of two sets of founders that have a node in common at most one becomes a cluster, whatever is lost or restarted.
//!   `bootstrap-expect` must be more than half of the nodes that will be started, so that any two sets have one in common.
//! - **Known limitation**: two clusters can result when the coordinator aborts its proposal and then stays unreachable for ten
//!   seconds ([`GONE_AFTER`]), the remaining founders complete that proposal without it, and one of them receives the abort
//!   during the second that completing takes.
//! - Time is tokio's and measures only how long a node was not seen. A wall clock that jumps has no effect.
//! - Every answer and every decision depends on durable state, never on state that is being written.
//!
//! `durable_state.rs` owns the durable part and the answers, `round.rs` collects what the other nodes report, `founding.rs`
//! and `joining.rs` act on that, `establish.rs` is the loop, `rpc.rs` defines the calls to other nodes. Never names raft or the controller.

mod durable_state;
mod establish;
mod founding;
#[cfg(test)]
mod hello_fuzz;
mod joining;
mod round;
mod rpc;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

pub use durable_state::{Founder, Memory, Origin, OwnCluster, Promised, Remembered};
pub use rpc::{JoinRefusal, MembershipRpc, PeerError};

use crate::discovery::Discovery;
use crate::metadata::DiskGeneration;
use crate::model::Addresses;

/// Version of the protocol between nodes (`peer.proto`) that this build speaks.
pub const PROTOCOL: u32 = 1;

/// How long a node must not be seen before the protocol continues without it, where that is safe.
pub const GONE_AFTER: Duration = Duration::from_secs(10);

/// Longest wait for one answer of a peer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Peers that are called concurrently.
const PEERS_AT_ONCE: usize = 32;

/// Most founders of one cluster; `bootstrap-expect` allows fewer.
const FOUNDERS_MAX: usize = 1000;

/// The cluster of a node and its raft id there. Durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: Uuid,
    /// The node's raft id in it.
    pub raft_id: u64,
}

/// How a node became a member of its cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum MembershipOutcome {
    /// The node is a founder. Every founder gets the same list, in the same order.
    Founded {
        /// Its cluster and raft id from now on.
        identity: Identity,
        /// The first members of the controller group, this node included, by raft id.
        founders: Vec<Founder>,
    },
    /// A running cluster admitted the node.
    Joined {
        /// Its cluster and raft id from now on.
        identity: Identity,
        /// Members of the controller group, from which the node gets the log.
        members: Vec<Founder>,
    },
    /// The node was a member already: this is a restart.
    Member {
        /// Its cluster and raft id.
        identity: Identity,
        /// How it became a member. The process may have ended before it acted on that.
        origin: Origin,
    },
}

/// Why a node cannot become a member of a cluster. Needs an operator: a retry does not help.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Discovery finds two clusters, and this node must not choose between them.
    #[error(
        "discovery leads to two clusters: {first} (at {first_address}) and {second} (at {second_address}); this node \
         joins neither. Correct cluster.seeds or cluster.dns-name, or stop the nodes that do not belong there"
    )]
    TwoClusters {
        /// The first cluster.
        first: Uuid,
        /// A node of the first cluster.
        first_address: String,
        /// The second cluster.
        second: Uuid,
        /// A node of the second cluster.
        second_address: String,
    },
    /// Another process runs with the same data directory, or a copy of it.
    #[error(
        "the node at {address} has the UUID of this node, {node_id}: its data directory is a copy. Give one of the two \
         nodes an empty data directory"
    )]
    Duplicate {
        /// The UUID.
        node_id: Uuid,
        /// Address of the other process.
        address: String,
    },
    /// The cluster permanently refuses this node.
    #[error("cluster {cluster_id} (asked at {address}) does not admit this node: {reason}: {message}")]
    Join {
        /// The cluster.
        cluster_id: Uuid,
        /// Address of the node that refused.
        address: String,
        /// Why.
        reason: JoinRefusal,
        /// The error message of the cluster.
        message: String,
    },
    /// The data directory belongs to a member with another name.
    #[error(
        "the data directory belongs to node {stored:?}, and this node is {configured:?} (node.name): the directories of two nodes may \
         be swapped. If the node is to have the new name, run `chronicle debug rename-node --data DIR --name {configured}` first"
    )]
    Renamed {
        /// The name of the member.
        stored: String,
        /// The configured name.
        configured: String,
    },
    /// The durable state could not be written or read.
    #[error("the node's identity could not be stored or read: {0}")]
    Memory(#[source] std::io::Error),
}

/// What this node reports about itself to other nodes.
#[derive(Debug, Clone)]
pub struct Own {
    /// UUID of the data directory.
    pub node_id: Uuid,
    /// Name for people.
    pub name: String,
    /// `HOST:PORT` of each listener; peers use the data listener's.
    pub addresses: Addresses,
    /// Failure domain; empty: none.
    pub zone: String,
    /// Software version.
    pub version: String,
    /// Generation of the data directory when the process started, with the number of the process: new with every start.
    pub start: DiskGeneration,
    /// Bootstrap a cluster once this many nodes without one are seen, this one included.
    pub bootstrap_expect: u32,
    /// Discovery may find other nodes. When it is false and one node is enough, this node bootstraps without calling
    /// other nodes.
    pub seeded: bool,
}

/// The source of randomness, so that a simulation can repeat a run.
pub struct Chance {
    /// Seeds the pauses between rounds.
    pub seed: u64,
    /// Makes the UUID of a cluster: version 7, never the same twice.
    pub cluster_id: Box<dyn Fn() -> Uuid + Send + Sync>,
}

impl Chance {
    /// The randomness of the operating system.
    #[expect(clippy::disallowed_methods, reason = "the source of chance that callers can replace")]
    pub fn system() -> Self {
        Self { seed: rand::random(), cluster_id: Box::new(crate::host::new_uuid) }
    }
}

/// The membership of this node. Shared by the transport, which answers calls with it, and the start, which waits for
/// it.
pub struct Membership {
    own: Own,
    state: durable_state::DurableState,
    peers: Arc<dyn MembershipRpc>,
    discovery: Arc<dyn Discovery>,
    /// Notified when a node that the last round did not see calls `Hello`.
    stranger: Notify,
    status: watch::Sender<String>,
    cluster_id: Box<dyn Fn() -> Uuid + Send + Sync>,
    jitter: Mutex<StdRng>,
}

impl Membership {
    /// Reads the durable state. From here on `hello`, `promise` and `found` can be answered.
    ///
    /// # Errors
    /// When the durable state cannot be read, or is that of a member with another name.
    pub async fn open(
        own: Own,
        memory: Arc<dyn Memory>,
        peers: Arc<dyn MembershipRpc>,
        discovery: Arc<dyn Discovery>,
        chance: Chance,
    ) -> Result<Self, MembershipError> {
        let state = durable_state::DurableState::open(memory).await.map_err(MembershipError::Memory)?;
        let kept = state.change(|memory| memory.keep_name(&own.name)).await.map_err(MembershipError::Memory)?;
        kept.map_err(|stored| MembershipError::Renamed { stored, configured: own.name.clone() })?;
        Ok(Self {
            state,
            own,
            peers,
            discovery,
            stranger: Notify::new(),
            status: watch::Sender::new("starting".into()),
            cluster_id: chance.cluster_id,
            jitter: Mutex::new(StdRng::seed_from_u64(chance.seed)),
        })
    }

    /// Returns the cluster and the raft id of the node; `None` before it is a member.
    pub fn identity(&self) -> Option<Identity> {
        *self.state.identity().borrow()
    }

    /// Sets the address of the controller leader that `Hello` reports; `None` while it is not known.
    pub fn set_controller_leader(&self, address: Option<String>) {
        self.state.look(|shown| shown.controller_leader = address.unwrap_or_default());
    }

    /// What the node waits for, as human-readable text. Also logged whenever it changes.
    pub fn status(&self) -> watch::Receiver<String> {
        self.status.subscribe()
    }

    /// Sets and logs the status; returns whether it differs from the previous one.
    fn say(&self, status: String) -> bool {
        self.status.send_if_modified(|said| {
            let new = *said != status;
            if new {
                tracing::info!("{status}");
                *said = status;
            }
            new
        })
    }
}
