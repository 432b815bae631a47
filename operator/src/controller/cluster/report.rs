//! Builds the status of a cluster: fields and conditions.
//!
//! Invariant: it starts from the previous status, so that what was not observed keeps its last known value.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;

use super::Certificates;
use crate::admin::AdminError;
use crate::api::{
    CertificateStatus, ChronicleCluster, ClusterStatus, ConditionType, MemberRole, MemberStatus, OperationKind,
    OperationStatus, QuorumStatus, VersionStatus, condition_of, set_condition,
};
use crate::build::{Cluster, Settings};
use crate::controller::ReconcileError;
use crate::plan::{
    CONFIGURATION_PENDING, CONFIGURATION_REFUSED, ClusterView, DesiredState, ObservedState, Step, not_loaded, outdated,
    pending_message, rejection,
};

/// A transient failure is reported after this many consecutive failures.
const REPORT_AFTER: u32 = 4;

/// Seconds from the start of its drain in which a node that is rolled may be dead without the condition Degraded.
const RESTART_SECONDS: i64 = 180;

/// Limit of the CRD: number of versions, and characters of each.
const VERSIONS_MAX: usize = 64;

/// The status under construction.
pub(super) struct StatusReport {
    pub(super) status: ClusterStatus,
    /// Whether the resource was changed in this reconcile.
    pub(super) stale: bool,
    /// Progress of a rotation of certificates.
    pub(super) rotation: Option<String>,
    /// Why a claim gets no volume.
    pub(super) unbound: Option<(&'static str, String)>,
    generation: Option<i64>,
    now: Timestamp,
    /// Why the state of the cluster is not known.
    unreachable: String,
    growth: Option<String>,
    two_clusters: Option<String>,
}

impl StatusReport {
    pub(super) fn new(resource: &ChronicleCluster, now: Timestamp) -> Self {
        let mut status = resource.status.clone().unwrap_or_default();
        status.observed_generation = resource.meta().generation;
        let generation = resource.meta().generation;
        let (unreachable, growth, two_clusters) = (String::new(), None, None);
        let (rotation, unbound) = (None, None);
        Self { status, stale: false, rotation, unbound, generation, now, unreachable, growth, two_clusters }
    }

    fn set(&mut self, kind: ConditionType, holds: Option<bool>, reason: &str, message: impl Into<String>) {
        set_condition(&mut self.status.conditions, kind, holds, reason, message, self.generation, self.now);
    }

    /// Returns whether Degraded does not have this reason yet.
    pub(super) fn is_new_reason(&self, reason: &str) -> bool {
        condition_of(&self.status.conditions, ConditionType::Degraded).is_none_or(|known| known.reason != reason)
    }

    /// Returns whether Progressing does not have this reason yet. To be called before [`StatusReport::conclude`].
    pub(super) fn is_new_block(&self, reason: &str) -> bool {
        condition_of(&self.status.conditions, ConditionType::Progressing).is_none_or(|known| known.reason != reason)
    }

    pub(super) fn invalid(&mut self, why: &str) {
        self.set(ConditionType::Progressing, Some(false), "InvalidSpec", why);
        self.set(ConditionType::Degraded, Some(true), "InvalidSpec", why);
    }

    /// Reports a failure. `attempt` counts consecutive failures from 1.
    pub(super) fn failed(&mut self, error: &ReconcileError, attempt: u32) {
        match error.is_transient() {
            false => self.set(ConditionType::Degraded, Some(true), error.reason(), error.to_string()),
            // A transient failure is reported only if it lasts.
            true if attempt >= REPORT_AFTER => {
                let why = format!("{error}; retrying");
                self.set(ConditionType::Progressing, Some(true), error.reason(), why);
            }
            true => {}
        }
    }

    pub(super) fn growth_failed(&mut self, error: &ReconcileError) {
        self.growth = Some(error.to_string());
    }

    pub(super) fn describe(&mut self, cluster: &Cluster) {
        self.status.selector = cluster.selector_text();
        self.status.endpoint = Some(cluster.endpoint());
    }

    pub(super) fn operation(&mut self, operation: Option<OperationStatus>, size: Option<i32>) {
        self.status.operation = operation;
        self.status.size = size;
    }

    pub(super) fn answered(&mut self, answer: Option<Result<ClusterView, AdminError>>) -> Option<ClusterView> {
        match answer {
            None => self.unreachable = "no node is running, or the operator has no certificate to connect with".into(),
            Some(Err(error)) => {
                if let AdminError::TwoClusters(_) = &error {
                    self.two_clusters = Some(error.to_string());
                }
                self.unreachable = error.to_string();
            }
            Some(Ok(view)) => return Some(view),
        }
        None
    }

    pub(super) fn observed(
        &mut self,
        cluster: &Cluster,
        observed: &ObservedState,
        certificates: &Certificates,
        settings: &Settings,
    ) {
        let count = |ready: bool| observed.pods.values().filter(|pod| pod.ready || !ready).count() as i32;
        self.status.replicas = count(false);
        self.status.ready_replicas = count(true);
        if let Some(view) = &observed.cluster {
            self.cluster(view);
        }
        self.quorate(observed.cluster.as_ref());
        self.storage(cluster, observed);
        match (certificates.encrypted(), certificates.trouble(settings)) {
            (false, _) => {
                self.set(ConditionType::CertificatesValid, Some(true), "Disabled", "spec.security.tls.mode is Disabled")
            }
            (true, None) => match self.rotation.take() {
                None => self.set(ConditionType::CertificatesValid, Some(true), "Valid", ""),
                Some(why) => self.set(ConditionType::CertificatesValid, Some(true), "Rotating", why),
            },
            (true, Some((reason, why))) => self.set(ConditionType::CertificatesValid, Some(false), reason, why),
        }
    }

    fn cluster(&mut self, view: &ClusterView) {
        let status = &mut self.status;
        status.cluster_id.get_or_insert_with(|| view.id.clone());
        let name_of = |id: &String| view.nodes.iter().find(|node| node.node_id == *id).map(|node| node.name.clone());
        status.leader = view.leader.as_ref().and_then(name_of);
        let mut members: Vec<MemberStatus> = Vec::new();
        for node in &view.nodes {
            let member = MemberStatus {
                name: node.name.clone(),
                node_id: node.node_id.clone(),
                role: if node.voter { MemberRole::Voter } else { MemberRole::Learner },
                state: node.state,
                alive: node.alive,
                version: node.version.clone(),
                zone: node.zone.clone(),
            };
            // Names are the keys of the list. While a node replaces another one of its name, the list has the new node.
            match members.iter_mut().find(|known| known.name == member.name) {
                Some(known) if node.alive || !known.alive => *known = member,
                Some(_) => {}
                None => members.push(member),
            }
        }
        status.members = members;
        let reported = view.nodes.iter().map(|node| node.version.chars().take(VERSIONS_MAX).collect());
        let mut running: Vec<String> = reported.filter(|version: &String| !version.is_empty()).collect();
        running.sort();
        running.dedup();
        running.truncate(VERSIONS_MAX);
        status.versions = Some(VersionStatus { running });
        let not_after = view.nodes.iter().filter(|node| node.alive).filter_map(|node| node.certificate_not_after).min();
        status.certificates = not_after.map(|at| CertificateStatus { not_after_seconds: Some(at) });
        let voters = view.nodes.iter().filter(|node| node.voter).count() as i32;
        let healthy = view.nodes.iter().filter(|node| node.voter && node.alive).count() as i32;
        let needed = voters / 2 + 1;
        let fault_tolerance = (healthy - needed).max(0);
        status.quorum = Some(QuorumStatus { voters, healthy, needed, fault_tolerance });
    }

    fn quorate(&mut self, view: Option<&ClusterView>) {
        let Some(view) = view else {
            let why = self.unreachable.clone();
            self.status.leader = None;
            self.set(ConditionType::Quorate, None, "Unknown", why.clone());
            let available = if self.status.ready_replicas == 0 { Some(false) } else { None };
            self.set(ConditionType::Available, available, "Unknown", why);
            return;
        };
        let (holds, reason, why) = match (&view.leader, view.offline) {
            (None, _) => (false, "NoLeader", "the controller group has no leader that responds".to_owned()),
            (_, 0) => (true, "Quorate", String::new()),
            (_, offline) => {
                (false, "PartitionsOffline", format!("{offline} partitions have no majority of live replicas"))
            }
        };
        self.set(ConditionType::Quorate, Some(holds), reason, why.clone());
        let available = view.leader.is_some() && self.status.ready_replicas > 0;
        let reason = if available { "Available" } else { reason };
        self.set(ConditionType::Available, Some(available), reason, if available { String::new() } else { why });
    }

    fn storage(&mut self, cluster: &Cluster, observed: &ObservedState) {
        let small: Vec<String> = observed
            .claims
            .iter()
            .filter(|(_, claim)| claim.requested < cluster.storage_bytes && claim.removed_node.is_none())
            .map(|(ordinal, _)| ordinal.to_string())
            .collect();
        let lost: Vec<String> =
            observed.claims.iter().filter(|(_, claim)| claim.lost).map(|(ordinal, _)| ordinal.to_string()).collect();
        if let Some((reason, why)) = self.unbound.take() {
            return self.set(ConditionType::StorageHealthy, Some(false), reason, why);
        }
        match (small.as_slice(), lost.as_slice()) {
            ([], []) => self.set(ConditionType::StorageHealthy, Some(true), "Healthy", ""),
            (_, [_, ..]) => {
                let why = format!("the volumes of nodes {} are lost", lost.join(", "));
                self.set(ConditionType::StorageHealthy, Some(false), "VolumeLost", why);
            }
            _ => {
                let why = format!("the volumes of nodes {} are smaller than spec.storage.size", small.join(", "));
                self.set(ConditionType::StorageHealthy, Some(false), "Growing", why);
            }
        }
    }

    /// Sets the conditions that follow from the step.
    pub(super) fn conclude(&mut self, desired: &DesiredState, step: &Step, observed: &ObservedState) {
        if let Some(why) = self.growth.take() {
            let why = format!("{why}; the StorageClass needs allowVolumeExpansion: true");
            self.set(ConditionType::StorageHealthy, Some(false), "GrowthRefused", why);
        }
        self.up_to_date(desired, observed);
        let busy = self.status.operation.as_ref().map(|operation| format!("{:?}", operation.kind));
        match step {
            Step::Wait { reason, message } if desired.paused => {
                self.set(ConditionType::Progressing, Some(false), reason, message)
            }
            Step::Wait { reason, message } => self.set(ConditionType::Progressing, Some(true), reason, message),
            Step::Blocked { reason, message } => self.set(ConditionType::Progressing, Some(false), reason, message),
            Step::Idle if desired.replicas == 0 => {
                self.set(
                    ConditionType::Progressing,
                    Some(false),
                    "Stopped",
                    "spec.replicas is 0: all nodes are stopped",
                );
            }
            Step::Idle => self.set(ConditionType::Progressing, Some(false), "Settled", ""),
            Step::Finish => self.set(ConditionType::Progressing, Some(true), "Settling", ""),
            _ => self.set(ConditionType::Progressing, Some(true), busy.as_deref().unwrap_or("Working"), ""),
        }
        self.degraded(desired, step, observed);
    }

    fn up_to_date(&mut self, desired: &DesiredState, observed: &ObservedState) {
        if let Some(why) = rejection(desired, observed) {
            return self.set(ConditionType::UpToDate, Some(false), CONFIGURATION_REFUSED, why);
        }
        let outdated =
            observed.pods.iter().filter(|(ordinal, pod)| outdated(desired, observed, **ordinal, pod)).count();
        if outdated > 0 {
            let why = format!("{outdated} of {} pods do not match the spec yet", observed.pods.len());
            return self.set(ConditionType::UpToDate, Some(false), "RollPending", why);
        }
        // Up-to-date pods may not have loaded the file.
        if observed.cluster.is_none() && !observed.pods.is_empty() {
            let why = self.unreachable.clone();
            return self.set(ConditionType::UpToDate, None, "ClusterUnknown", why);
        }
        match not_loaded(desired, observed).as_slice() {
            [] => self.set(ConditionType::UpToDate, Some(true), "UpToDate", ""),
            names => self.set(ConditionType::UpToDate, Some(false), CONFIGURATION_PENDING, pending_message(names)),
        }
    }

    /// Returns the node that a roll is restarting now: its missing heartbeats are expected.
    fn restarting(&self, observed: &ObservedState) -> Option<&str> {
        let operation = self.status.operation.as_ref().filter(|operation| operation.kind == OperationKind::Roll)?;
        let is_young = operation.age_seconds(observed.now)? < RESTART_SECONDS;
        is_young.then_some(operation.target.as_str())
    }

    fn degraded(&mut self, desired: &DesiredState, step: &Step, observed: &ObservedState) {
        if let Some(why) = self.two_clusters.take() {
            return self.set(ConditionType::Degraded, Some(true), "TwoClusters", why);
        }
        // Dead nodes are more urgent than a rejected file.
        if let Step::Blocked { reason, message } = step
            && *reason != CONFIGURATION_REFUSED
        {
            return self.set(ConditionType::Degraded, Some(true), reason, message);
        }
        if desired.replicas == 0 {
            return self.set(ConditionType::Degraded, Some(false), "Stopped", "");
        }
        match &observed.cluster {
            Some(view) => {
                let dead: Vec<&str> =
                    view.nodes.iter().filter(|node| !node.alive).map(|node| node.name.as_str()).collect();
                let restarting = self.restarting(observed);
                if !dead.is_empty() && dead.iter().all(|name| Some(*name) == restarting) {
                    self.set(ConditionType::Degraded, Some(false), "AsExpected", "");
                } else if !dead.is_empty() {
                    let why = format!("no heartbeat from {}", dead.join(", "));
                    self.set(ConditionType::Degraded, Some(true), "NodesDead", why);
                } else if view.under_replicated > 0 {
                    let why = format!(
                        "{} partitions are under-replicated: a replica is on a node that is not alive",
                        view.under_replicated
                    );
                    self.set(ConditionType::Degraded, Some(true), "UnderReplicated", why);
                } else if let Some(why) = rejection(desired, observed) {
                    self.set(ConditionType::Degraded, Some(true), CONFIGURATION_REFUSED, why);
                } else {
                    self.set(ConditionType::Degraded, Some(false), "AsExpected", "");
                }
            }
            None if self.status.cluster_id.is_some() => {
                let why = self.unreachable.clone();
                self.set(ConditionType::Degraded, Some(true), "ClusterUnknown", why);
            }
            None => self.set(ConditionType::Degraded, Some(false), "Starting", ""),
        }
    }
}
