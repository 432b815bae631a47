//! What decisions rest on.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use crate::api::{MemberState, OperationStatus};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Name of the cluster.
    pub name: String,
    /// Its namespace, for commands in messages.
    pub namespace: String,
    /// Nodes; 0: stopped.
    pub replicas: i32,
    /// Size of each volume.
    pub storage_bytes: u64,
    /// Hash of the pod template.
    pub revision: String,
    /// Image of the nodes.
    pub image: String,
    /// BLAKE3 digest of each configuration file that says what is asked for; see [`crate::build::config_files`].
    pub files: Vec<String>,
    /// Version that the image holds, if it was said.
    pub version: Option<String>,
    /// Nothing may be changed.
    pub paused: bool,
    /// Claims of removed nodes are deleted.
    pub delete_claims: bool,
    /// Most voters of the controller group.
    pub voters: u32,
    /// Lost nodes are replaced without being asked.
    pub replace_lost: bool,
    /// Seconds that a pod must have been unready for its node to count as lost.
    pub replace_after_seconds: i64,
    /// Pod whose node a person wants replaced.
    pub replace: Option<String>,
}

/// What the status holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// What is under way.
    pub operation: Option<OperationStatus>,
    /// Nodes that the cluster consists of.
    pub size: Option<i32>,
    /// UUID of the cluster.
    pub cluster_id: Option<String>,
}

/// What was looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// When.
    pub now: Timestamp,
    /// The StatefulSet.
    pub set: Option<SetView>,
    /// Pods by number.
    pub pods: BTreeMap<i32, PodView>,
    /// Claims by number.
    pub claims: BTreeMap<i32, ClaimView>,
    /// What a majority of the controller group's voters says; `None`: no majority answered.
    pub cluster: Option<ClusterView>,
    /// Whether the nodes that an operation rests on have all records: the one that was replaced, or all but the one that is about
    /// to be.
    pub catch_up: CatchUp,
    /// Why no pod can be started yet.
    pub not_ready_to_start: Option<String>,
}

impl Observed {
    /// The member of this name, which is unique among those that were not removed; a node that takes the place of another one of
    /// its name is preferred.
    pub(crate) fn node_named(&self, name: &str) -> Option<&NodeView> {
        let cluster = self.cluster.as_ref()?;
        cluster.nodes.iter().filter(|node| node.name == name).max_by_key(|node| (node.alive, node.raft_id))
    }
}

/// The StatefulSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetView {
    /// Its UID.
    pub uid: String,
    /// Pods that it runs.
    pub replicas: i32,
    /// Size of further claims.
    pub template_bytes: u64,
    /// It is being deleted.
    pub terminating: bool,
}

/// The machine of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Machine {
    /// There is none yet.
    Unassigned,
    /// It is there, as far as is known.
    #[default]
    Present,
    /// It does not answer; what runs on it may still run.
    Silent,
    /// It was taken out of the cluster, or somebody has said that it is off: nothing runs on it.
    Gone,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Its UID.
    pub uid: String,
    /// Its resource version.
    pub resource_version: String,
    /// Hash of the template that it was made from.
    pub revision: String,
    /// Image of its container.
    pub image: String,
    /// Kubernetes says that it is ready.
    pub ready: bool,
    /// Its container runs, or it is not known not to.
    pub running: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// Since when it is not ready.
    pub unready_since: Option<Timestamp>,
    /// Where it runs.
    pub machine: Machine,
    /// Why it does not run, in Kubernetes' words; empty: it does.
    pub trouble: String,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// Its UID.
    pub uid: String,
    /// Bytes asked for.
    pub requested: u64,
    /// It is being deleted.
    pub terminating: bool,
    /// Its volume is gone, or on a machine that is.
    pub lost: bool,
    /// UUID of its node, when that was removed from the cluster.
    pub removed_node: Option<String>,
}

/// The cluster's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// UUID of the cluster.
    pub id: String,
    /// UUID of the node that leads the controller group.
    pub leader: Option<String>,
    /// Members that were not removed.
    pub nodes: Vec<NodeView>,
    /// UUIDs of nodes that were removed for good.
    pub removed: BTreeSet<String>,
    /// Partitions without a live majority.
    pub offline: u32,
    /// Partitions with a replica on a node that is not alive.
    pub under_replicated: u32,
    /// Partitions whose replicas are not yet where they should be.
    pub moving: u32,
    /// Operations under way in the cluster.
    pub operations: Vec<RunningOperation>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// UUID.
    pub node_id: String,
    /// Its number in raft groups, never given twice.
    pub raft_id: u64,
    /// Name, that of its pod.
    pub name: String,
    /// It votes in the controller group.
    pub voter: bool,
    /// State in the cluster.
    pub state: MemberState,
    /// The leader of the controller group hears from it.
    pub alive: bool,
    /// Version that it runs.
    pub version: String,
    /// Failure domain.
    pub zone: String,
    /// End of its certificate's life, in seconds since the Unix epoch.
    pub certificate_not_after: Option<i64>,
    /// Serial number of the certificate that it serves, hexadecimal.
    pub certificate_serial: Option<String>,
    /// It was asked just now and answered for itself.
    pub answered: bool,
    /// What it makes of its configuration file, by its own answer; `None`: it did not answer, or is of a version that does not say.
    pub configuration: Option<NodeConfiguration>,
}

/// What a node makes of its configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeConfiguration {
    /// BLAKE3 digest of the newest file that it took, lower-case hexadecimal.
    pub file_digest: String,
    /// Fields whose value in that file waits for a restart.
    pub restart_fields: Vec<String>,
    /// Why it does not take the file as it is now, in its own words; empty: it does.
    pub error: String,
}

/// An operation of the cluster itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningOperation {
    /// `decommission`, `drain`, `replace`, `rebalance`.
    pub kind: String,
    /// UUID of the node that it is about.
    pub node_id: String,
    /// What it waits for.
    pub reason: String,
    /// Partitions left.
    pub remaining: u32,
}

/// Whether a node has all records that its replicas should have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CatchUp {
    /// It was not asked, or did not answer.
    #[default]
    Unknown,
    /// It has not.
    Behind {
        /// What is missing, for people.
        why: String,
    },
    /// It has.
    Done,
}
