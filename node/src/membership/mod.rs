//! Which cluster this node is in: founding one, joining one, and knowing it again after a restart.
//!
//! [`Membership`] answers `Hello`, `Promise` and `Found` from the first moment on, and [`Membership::establish`] runs once at
//! start until the node knows where it belongs.
//!
//! # How a cluster is founded
//!
//! In rounds: look addresses up, say hello to all of them, decide. When anybody has a cluster, the node joins that and never
//! founds. Otherwise, when at least `bootstrap-expect` nodes are seen, all of them without a cluster, with the same
//! `bootstrap-expect`, and reporting the same set of nodes, the one with the smallest UUID coordinates: a two-phase commit
//! among that set, the *founders*, of a proposal that is named by the UUID of the cluster to be.
//!
//! 1. The coordinator promises itself, durably, then has everybody promise. A node has at most one promise.
//! 2. When all founders have promised, the coordinator is in the cluster, durably, and tells the others by `Found`. Only who
//!    holds the promise takes that. Who misses it follows when it sees somebody in the cluster that it promised to.
//!
//! Who refuses a proposal, or forgets one, remembers that and refuses it for good. So once all have promised, anybody who
//! knows it may finish the founding, with the same result; and once one has refused, nobody ever can. A lost message, a crash
//! and a restart at any point lead to one of the two:
//!
//! - A coordinator that restarts goes on with the same proposal.
//! - A coordinator that is *gone* ([`GONE_AFTER`]) is replaced by whoever promised: they ask the remaining founders to
//!   promise, and found. It is a founder too; with its disk lost it comes back as another node, and joins.
//! - A founder that is gone before the coordinator has its promise: the coordinator says that it gives the proposal up, those
//!   who promised forget it when they see that, and when the coordinator sees one that did, it forgets it, too.
//! - Coordinator and another founder both gone, or the coordinator of two: nobody can know whether they founded. The others
//!   wait and say for whom. When another node answers at the address of one of them, its disk is lost, and so is what it
//!   knew. Otherwise a person decides: bring them back, or empty the data directories, in which nothing is stored yet.
//!
//! Gone is a node that neither answered nor called for that long, and that nobody who answers sees.
//!
//! # What is promised
//!
//! - Of two sets of founders that have a node in common at most one becomes a cluster, whatever is lost or restarted. Sets in
//!   common are what `bootstrap-expect` is for: it must be more than half of the nodes that will be started.
//! - The one way around it that we know: founders finish without a coordinator that they have not heard of for
//!   [`GONE_AFTER`], and within the second that this takes one of them hears that it had given up.
//! - Time is tokio's and only measures how long somebody was not seen; a clock that jumps does nothing.
//! - Every answer and every decision rests on what is durable, not on what is being written.
//!
//! `state.rs` owns the durable part and the answers, `round.rs` looks around, `founding.rs` and `joining.rs` act on what it
//! saw, `establish.rs` is the loop.

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
