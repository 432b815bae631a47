//! The durable state of a node's membership: promises and its own cluster, and the answers that depend on it.
//!
//! Invariants:
//! - The state that other nodes see is durable. While a change is being written, they see the old state.
//! - A node holds at most one promise, and none once it has a cluster. It never promises a proposal that it has refused.
//! - A cluster is never replaced by another.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use chronicle_proto::internal as wire;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::{FOUNDERS_MAX, GONE_AFTER, Identity};

/// Refused proposals that are stored. A proposal lives only as long as its coordinator retries, so only the last few
/// matter.
const REFUSED_MAX: usize = 256;

/// Nodes whose last `Hello` is recorded. Only a bound on memory: the callers are future founders.
const HEARD_MAX: usize = 2 * FOUNDERS_MAX;

/// Durable storage of [`Remembered`].
pub trait Memory: Send + Sync {
    /// Loads the last stored state; the default when nothing was stored.
    fn load(&self) -> BoxFuture<'_, io::Result<Remembered>>;

    /// Stores the whole state, replacing the previous one, and returns when it is durable. Calls take effect in order,
    /// even when the future is dropped early.
    fn store(&self, remembered: Remembered) -> BoxFuture<'_, io::Result<()>>;
}

/// One of the first members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founder {
    /// UUID of its data directory.
    pub node_id: Uuid,
    /// Raft id, from 1.
    pub raft_id: u64,
    /// Name for people.
    pub name: String,
    /// `HOST:PORT` of its data port.
    pub address: String,
    /// Failure domain; empty: none.
    pub zone: String,
    /// Software version.
    pub version: String,
}

/// A proposal of a cluster that the node has promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// UUID of the proposed cluster.
    pub cluster_id: Uuid,
    /// The node that proposes.
    pub coordinator: Uuid,
    /// All founders, by raft id.
    pub founders: Vec<Founder>,
}

/// How a node became a member of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The node is one of these founders.
    Founded(Vec<Founder>),
    /// A running cluster admitted the node; these were the members of the controller group.
    Joined(Vec<Founder>),
}

/// The cluster of a node, and how the node became a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCluster {
    /// Cluster and raft id.
    pub identity: Identity,
    /// How the node became a member.
    pub origin: Origin,
}

/// The part of the membership that survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// The cluster that the node is a member of; its key in the stored form is `place`.
    #[serde(rename = "place")]
    pub own_cluster: Option<OwnCluster>,
    /// The proposal that it has promised.
    pub promised: Option<Promised>,
    /// Not empty: this node is the coordinator of the proposal that it promised, and is aborting it. It releases its
    /// own promise once one of these nodes, which promised too, has released theirs. Until then `Hello` already reports
    /// no promise of this node. Empty: this node is not aborting a proposal.
    pub giving_up: Vec<Uuid>,
    /// Proposals that it never promises, oldest first.
    pub refused: Vec<Uuid>,
    /// The name under which the node became a member; empty: none yet, or a version that did not store it.
    pub name: String,
}

impl Remembered {
    /// Promises the proposal, or refuses it permanently and returns why.
    ///
    /// `node_id` is this node, which bootstraps with `expected` nodes at least and sees the cluster `in_sight`.
    pub(super) fn promise(
        &mut self,
        proposal: Promised,
        node_id: Uuid,
        expected: u32,
        in_sight: Option<Uuid>,
    ) -> Result<(), String> {
        let id = proposal.cluster_id;
        if let Some(own) = &self.own_cluster {
            let known = own.identity.cluster_id;
            return if known == id { Ok(()) } else { Err(format!("it belongs to cluster {known}")) };
        }
        let why = match (&self.promised, in_sight) {
            (Some(promised), _) if promised.cluster_id == id && *promised == proposal => return Ok(()),
            (Some(promised), _) => format!("it holds a promise for cluster {}", promised.cluster_id),
            _ if self.refused.contains(&id) => "it has refused this proposal before".to_owned(),
            (None, Some(cluster)) if cluster != id => format!("there is a cluster already: {cluster}"),
            _ if !proposal.is_sound() => "the founders are not a set of nodes with raft ids 1, 2, 3, ...".to_owned(),
            _ if proposal.founders.iter().all(|founder| founder.node_id != node_id) => {
                "it is not among the founders".into()
            }
            _ if proposal.founders.len() < expected as usize => {
                format!("it expects {expected} founders, not {}", proposal.founders.len())
            }
            (None, _) => {
                self.promised = Some(proposal);
                return Ok(());
            }
        };
        self.refuse(id);
        Err(why)
    }

    /// Enters the cluster that the node promised, or returns why it cannot.
    pub(super) fn found(&mut self, cluster_id: Uuid, node_id: Uuid) -> Result<(), String> {
        if let Some(own) = &self.own_cluster {
            let known = own.identity.cluster_id;
            return if known == cluster_id { Ok(()) } else { Err(format!("it belongs to cluster {known}")) };
        }
        let promised = self.promised.take_if(|promised| promised.cluster_id == cluster_id);
        let promised = promised.ok_or("it holds no promise for this cluster")?;
        let own = promised.founders.iter().find(|founder| founder.node_id == node_id);
        let own = own.ok_or("it is not among the founders")?;
        let identity = Identity { cluster_id, raft_id: own.raft_id };
        self.name = own.name.clone();
        self.own_cluster = Some(OwnCluster { identity, origin: Origin::Founded(promised.founders) });
        self.giving_up.clear();
        Ok(())
    }

    /// Enters the cluster that admitted the node as `name`, unless it has a cluster already.
    pub(super) fn join(&mut self, identity: Identity, members: Vec<Founder>, name: &str) {
        self.forget();
        if self.own_cluster.is_none() {
            self.own_cluster = Some(OwnCluster { identity, origin: Origin::Joined(members) });
            name.clone_into(&mut self.name);
        }
    }

    /// Checks that a member still has its name. Stores the name if a version before did not.
    ///
    /// # Errors
    /// The name under which the node became a member.
    pub(super) fn keep_name(&mut self, name: &str) -> Result<(), String> {
        if self.own_cluster.is_none() || self.name == name {
            return Ok(());
        }
        if !self.name.is_empty() {
            return Err(self.name.clone());
        }
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// Permanently releases the promise.
    pub(super) fn forget(&mut self) {
        if let Some(promised) = self.promised.take() {
            self.refuse(promised.cluster_id);
        }
        self.giving_up.clear();
    }

    fn refuse(&mut self, cluster_id: Uuid) {
        if !self.refused.contains(&cluster_id) {
            let surplus = (self.refused.len() + 1).saturating_sub(REFUSED_MAX);
            self.refused.drain(..surplus);
            self.refused.push(cluster_id);
        }
    }
}

impl Promised {
    /// Checks that the founders are sorted by UUID, each once, numbered from 1, with the coordinator among them.
    fn is_sound(&self) -> bool {
        let founders = &self.founders;
        let numbered = founders.iter().zip(1..).all(|(founder, number)| founder.raft_id == number);
        let sorted = founders.is_sorted_by(|a, b| a.node_id < b.node_id);
        let led = founders.iter().any(|founder| founder.node_id == self.coordinator);
        numbered && sorted && led && founders.len() <= FOUNDERS_MAX && !self.cluster_id.is_nil()
    }
}

/// The state that other nodes see, and what this node learned from them.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown {
    pub(super) own_cluster: Option<OwnCluster>,
    pub(super) promised: Option<Promised>,
    pub(super) giving_up: Vec<Uuid>,
    /// Nodes without a cluster that the last round saw, this one not included.
    pub(super) seen: Vec<Uuid>,
    /// The cluster that the last round saw.
    pub(super) in_sight: Option<Uuid>,
    /// When other nodes last called `Hello`.
    pub(super) heard: BTreeMap<Uuid, Instant>,
    pub(super) controller_leader: String,
}

impl Shown {
    pub(super) fn hear(&mut self, node_id: Uuid) {
        let now = Instant::now();
        if self.heard.len() >= HEARD_MAX && !self.heard.contains_key(&node_id) {
            self.heard.retain(|_, heard| now.duration_since(*heard) < GONE_AFTER);
        }
        if self.heard.len() < HEARD_MAX {
            self.heard.insert(node_id, now);
        }
    }
}

/// Owner of the durable state.
pub(super) struct DurableState {
    memory: Arc<dyn Memory>,
    /// Locked while writing. `None`: a write did not complete, so the stored state must be read first.
    durable: tokio::sync::Mutex<Option<Remembered>>,
    shown: Mutex<Shown>,
    identity: watch::Sender<Option<Identity>>,
}

impl DurableState {
    pub(super) async fn open(memory: Arc<dyn Memory>) -> io::Result<Self> {
        let state = Self {
            memory,
            durable: tokio::sync::Mutex::new(None),
            shown: Mutex::default(),
            identity: watch::Sender::new(None),
        };
        state.change(|_| ()).await?;
        Ok(state)
    }

    /// Changes the durable state. When this fails or is dropped, the outcome is unknown: the change may have been
    /// stored; the next call reads the stored state.
    pub(super) async fn change<T>(&self, change: impl FnOnce(&mut Remembered) -> T) -> io::Result<T> {
        let mut durable = self.durable.lock().await;
        let before = match durable.take() {
            Some(remembered) => remembered,
            None => {
                let loaded = self.memory.load().await?;
                self.show(&loaded);
                loaded
            }
        };
        let mut after = before.clone();
        let answer = change(&mut after);
        if after != before {
            self.memory.store(after.clone()).await?;
            self.show(&after);
        }
        *durable = Some(after);
        Ok(answer)
    }

    fn show(&self, remembered: &Remembered) {
        let mut shown = self.shown.lock();
        shown.own_cluster = remembered.own_cluster.clone();
        shown.promised = remembered.promised.clone();
        shown.giving_up = remembered.giving_up.clone();
        let identity = remembered.own_cluster.as_ref().map(|own| own.identity);
        self.identity.send_if_modified(|known| std::mem::replace(known, identity) != identity);
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&mut Shown) -> T) -> T {
        look(&mut self.shown.lock())
    }

    pub(super) fn own_cluster(&self) -> Option<OwnCluster> {
        self.shown.lock().own_cluster.clone()
    }

    pub(super) fn promised(&self) -> Option<Promised> {
        self.shown.lock().promised.clone()
    }

    /// The cluster and raft id of the node, now and when they change.
    pub(super) fn identity(&self) -> watch::Receiver<Option<Identity>> {
        self.identity.subscribe()
    }
}

impl From<Founder> for wire::Founder {
    fn from(founder: Founder) -> Self {
        let Founder { node_id, raft_id, name, address, zone, version } = founder;
        Self { node_id: node_id.to_string(), raft_id, name, address, zone, version }
    }
}

impl TryFrom<wire::Founder> for Founder {
    type Error = String;

    fn try_from(founder: wire::Founder) -> Result<Self, String> {
        let wire::Founder { node_id, raft_id, name, address, zone, version } = founder;
        Ok(Self { node_id: parse_uuid("node_id", &node_id)?, raft_id, name, address, zone, version })
    }
}

/// Parses a UUID from outside this node; rejects the nil UUID.
pub(super) fn parse_uuid(field: &str, text: &str) -> Result<Uuid, String> {
    let parsed = Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil());
    parsed.ok_or_else(|| format!("{field}: {text:?}: must be a UUID"))
}

/// As `parse_uuid`; an empty text: `None`.
pub(super) fn parse_optional_uuid(field: &str, text: &str) -> Result<Option<Uuid>, String> {
    if text.is_empty() { Ok(None) } else { parse_uuid(field, text).map(Some) }
}
