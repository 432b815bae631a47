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
//! `state.rs` owns the durable part and the answers, `round.rs` collects what the other nodes report, `founding.rs` and `joining.rs` act
//! on that, `establish.rs` is the loop. Never names raft or the controller.

mod establish;
mod founding;
mod joining;
mod peers;
mod round;
mod state;
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

pub use peers::{JoinRefusal, PeerError, Peers};
pub use state::{Founder, Memory, Origin, Place, Promised, Remembered};

use crate::discovery::Discovery;
use crate::model::Addresses;

/// Version of the protocol between nodes (`peer.proto`) that this build speaks.
pub const PROTOCOL: u32 = 1;

/// A node that was not seen for this long is not waited for where the protocol can do without it.
pub const GONE_AFTER: Duration = Duration::from_secs(10);

/// Longest wait for one answer of a peer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Peers that are asked at the same time.
const PEERS_AT_ONCE: usize = 32;

/// Most founders of one cluster; what `bootstrap-expect` allows is less.
const FOUNDERS_MAX: usize = 1000;

/// Where a node belongs. Durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: Uuid,
    /// The node's raft id in it.
    pub raft_id: u64,
}

/// How a node comes to its cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// It is one of those that found it. Everybody in `founders` gets the same list, in the same order.
    Founded {
        /// Where it belongs from now on.
        identity: Identity,
        /// The first members of the controller group, this node included, by raft id.
        founders: Vec<Founder>,
    },
    /// It was taken in.
    Joined {
        /// Where it belongs from now on.
        identity: Identity,
        /// Members of the controller group: where to get the log from.
        members: Vec<Founder>,
    },
    /// It knew: this is a restart.
    Member {
        /// Where it belongs.
        identity: Identity,
        /// How it once came to it. The process may have ended before anything was made of it.
        origin: Origin,
    },
}

/// Why a node cannot have a cluster. A person must look at it; trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Discovery leads to two clusters, and this node must not choose.
    #[error(
        "discovery leads to two clusters: {first} (at {first_address}) and {second} (at {second_address}); this node will \
         not choose. Correct cluster.seeds or cluster.dns-name, or stop the nodes that do not belong there"
    )]
    TwoClusters {
        /// One of them.
        first: Uuid,
        /// A node of it.
        first_address: String,
        /// The other.
        second: Uuid,
        /// A node of it.
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
        /// Where the other one answers.
        address: String,
    },
    /// The cluster does not take this node.
    #[error("cluster {cluster_id} (asked at {address}) does not take this node in: {reason}: {message}")]
    Join {
        /// The cluster.
        cluster_id: Uuid,
        /// Who said so.
        address: String,
        /// Why.
        reason: JoinRefusal,
        /// In the words of the cluster.
        message: String,
    },
    /// What must be remembered could not be written or read.
    #[error("the node's identity could not be stored or read: {0}")]
    Memory(#[source] std::io::Error),
}

/// Who this node is, for others.
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
    /// New with every start of the process.
    pub boot: u64,
    /// Found a cluster once this many nodes without one are seen, this one included.
    pub bootstrap_expect: u32,
    /// Discovery may find others. If not, and one node is enough, there is nobody to ask before founding.
    pub seeded: bool,
}

/// Where chance comes from, so that a simulation can repeat it.
pub struct Chance {
    /// Seeds the pauses between rounds.
    pub seed: u64,
    /// Makes the UUID of a cluster: version 7, never the same twice.
    pub cluster_id: Box<dyn Fn() -> Uuid + Send + Sync>,
}

impl Chance {
    /// The system's.
    #[expect(clippy::disallowed_methods, reason = "the source of chance that callers can replace")]
    pub fn system() -> Self {
        Self { seed: rand::random(), cluster_id: Box::new(crate::host::new_uuid) }
    }
}

/// The node's place in a cluster. Shared by the transport, which lets it answer, and the start, which waits for it.
pub struct Membership {
    own: Own,
    state: state::State,
    peers: Arc<dyn Peers>,
    discovery: Arc<dyn Discovery>,
    /// Somebody said hello whom the last round did not see.
    stranger: Notify,
    status: watch::Sender<String>,
    cluster_id: Box<dyn Fn() -> Uuid + Send + Sync>,
    jitter: Mutex<StdRng>,
}

impl Membership {
    /// Reads what is remembered. From here on `hello`, `promise` and `found` can be answered.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub async fn open(
        own: Own,
        memory: Arc<dyn Memory>,
        peers: Arc<dyn Peers>,
        discovery: Arc<dyn Discovery>,
        chance: Chance,
    ) -> Result<Self, Refused> {
        Ok(Self {
            state: state::State::open(memory).await.map_err(Refused::Memory)?,
            own,
            peers,
            discovery,
            stranger: Notify::new(),
            status: watch::Sender::new("starting".into()),
            cluster_id: chance.cluster_id,
            jitter: Mutex::new(StdRng::seed_from_u64(chance.seed)),
        })
    }

    /// Where the node belongs, once it does.
    pub fn identity(&self) -> Option<Identity> {
        *self.state.identity().borrow()
    }

    /// What `Hello` tells others about the leader of the controller group; `None` while it is not known.
    pub fn set_controller_leader(&self, address: Option<String>) {
        self.state.look(|shown| shown.controller_leader = address.unwrap_or_default());
    }

    /// What the node waits for, for people. Also logged whenever it changes.
    pub fn status(&self) -> watch::Receiver<String> {
        self.status.subscribe()
    }

    /// True when this was not what was said last.
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
