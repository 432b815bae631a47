//! Reconciles a ChronicleCluster: validate, read the inputs, apply the objects, plan, execute one step, write the status.
//!
//! Invariants:
//! - All inputs are read from the API server and the nodes before the first write.
//! - One reconcile executes at most one step of the plan. An operation is recorded in the status before its first step.
//! - While `spec.reconciliation` is `Paused`, only the status is written.
//!
//! Neighbours: `observe.rs` reads pods, claims and machines, `rotation.rs` reads certificates and rotates CAs, `steps.rs` executes a step,
//! `report.rs` builds the status, `delete.rs` handles deletion.

mod certificates;
mod delete;
mod observe;
mod status;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tracing::Instrument;

pub use certificates::{Certificates, operator_target};
pub(super) use certificates::{issued_at, reissue, text as secret_text};

use super::{Applier, Context, EventKind, FIELD_MANAGER, FINALIZER, ReconcileError};
use crate::admin::{AdminError, Target};
use crate::api::{
    ChronicleCluster, ClusterStatus, OperationKind, OperationStep, Reconciliation, ReplacementMode, RetentionPolicy,
};
use crate::build::{Cluster, KINDS, REPLACE, build, config_files, dynamic, ordinal_of, pod_name, validate};
use crate::plan::{Ask, CatchUp, ClusterView, Memory, Observed, Step, plan, pods_wanted};
use crate::process::SPANS;
use observe::Look;
use status::Outcome;

/// Delay after a step.
const AGAIN: Duration = Duration::from_millis(50);
/// Poll interval while an operation waits for nodes, for which there is no watch.
const POLL: Duration = Duration::from_secs(1);
/// Poll interval while the cluster has not converged and no operation is in progress.
const UNSETTLED: Duration = Duration::from_secs(5);
/// Poll interval of a converged cluster.
const SETTLED: Duration = Duration::from_secs(60);

/// Reconciles one cluster.
///
/// # Errors
/// The failure; [`super::ReconcileError::pause`] has the delay of the retry.
pub async fn reconcile(resource: Arc<ChronicleCluster>, context: Context) -> Result<Action, ReconcileError> {
    let namespace = resource.namespace().unwrap_or_default();
    let api: Api<ChronicleCluster> = Api::namespaced(context.client(), &namespace);
    let name = resource.name_any();
    // The cache may lag behind the last write.
    let Some(resource) = api.get_opt(&name).await.map_err(ReconcileError::kube("get the ChronicleCluster"))? else {
        return Ok(Action::await_change());
    };
    if resource.meta().deletion_timestamp.is_some() {
        return delete::delete(&context, &api, &resource).await;
    }
    if !resource.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        add_finalizer(&api, &resource).await?;
        return Ok(Action::requeue(AGAIN));
    }
    Pass { context: &context, api: &api, resource: &resource }.run().await
}

/// Adds the finalizer, unless the object has changed since it was read.
pub(super) async fn add_finalizer<K>(api: &Api<K>, resource: &K) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut finalizers = resource.finalizers().to_vec();
    finalizers.push(FINALIZER.into());
    set_finalizers(api, resource, &finalizers).await
}

/// Removes the finalizer, unless the object has changed since it was read.
pub(super) async fn remove_finalizer<K>(api: &Api<K>, resource: &K) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let finalizers: Vec<String> =
        resource.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    if finalizers.len() == resource.finalizers().len() {
        return Ok(());
    }
    set_finalizers(api, resource, &finalizers).await
}

async fn set_finalizers<K>(api: &Api<K>, resource: &K, finalizers: &[String]) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": resource.resource_version(), "uid": resource.uid()}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let patched = api.patch(&resource.name_any(), &params, &Patch::Merge(patch)).await;
    match patched {
        Err(error) if super::is_not_found(&error) => Ok(()),
        other => other.map(drop).map_err(ReconcileError::kube("write the finalizers")),
    }
}

struct Pass<'a> {
    context: &'a Context,
    api: &'a Api<ChronicleCluster>,
    resource: &'a ChronicleCluster,
}

/// Everything that a reconcile reads before it writes.
struct Seen {
    live: BTreeMap<(String, String), DynamicObject>,
    certificates: Certificates,
    target: Target,
    observed: Observed,
}

/// The trace span of a phase of a reconcile.
macro_rules! span {
    ($name:literal) => {
        tracing::debug_span!(target: SPANS, $name)
    };
}

impl Pass<'_> {
    fn key(&self) -> String {
        format!("{}/{}", self.resource.namespace().unwrap_or_default(), self.resource.name_any())
    }

    async fn run(&self) -> Result<Action, ReconcileError> {
        let mut outcome = Outcome::new(self.resource, self.context.now());
        let result = self.steps(&mut outcome).await;
        if outcome.stale {
            // The resource was changed in this reconcile. The next one writes the status.
            return result;
        }
        if let Err(error) = &result {
            let (reason, key) = (error.reason(), format!("ChronicleCluster/{}", self.key()));
            if !error.is_transient() && outcome.is_news(reason) {
                self.context.event(self.resource, EventKind::Warning, reason, &error.to_string()).await;
            }
            outcome.failed(error, self.context.failures(&key) + 1);
        }
        let written = self.write_status(&outcome).instrument(span!("status")).await;
        let action = result?;
        written?;
        Ok(action)
    }

    async fn steps(&self, outcome: &mut Outcome) -> Result<Action, ReconcileError> {
        let status = self.resource.status.clone().unwrap_or_default();
        let memory =
            Memory { operation: status.operation.clone(), size: status.size, cluster_id: status.cluster_id.clone() };
        let founders = memory.size.unwrap_or(self.resource.spec.replicas).max(1);
        let cluster = match validate(self.resource, founders, memory.cluster_id.is_some()) {
            Ok(cluster) => cluster,
            Err(invalid) => {
                if outcome.is_news("InvalidSpec") {
                    self.context.event(self.resource, EventKind::Warning, "InvalidSpec", &invalid.to_string()).await;
                }
                outcome.invalid(&invalid.to_string());
                return Ok(Action::await_change());
            }
        };
        outcome.describe(&cluster);
        let available = self.context.available().await;
        let applier = Applier::new(self.context.client(), &cluster.namespace, cluster.owner())
            .remembering(self.context.unmended());
        let look = self.look(outcome, &cluster, &memory, available, &applier);
        let Seen { live, certificates, target, mut observed } = look.instrument(span!("observe")).await?;

        let paused = cluster.spec.reconciliation == Reconciliation::Paused;
        let trust = certificates.trust();
        let ask_revision = build(&cluster, self.context.settings(), available, 0, trust.as_deref()).revision;
        observed.not_ready_to_start = certificates.not_ready();
        let ask = self.ask(&cluster, ask_revision);
        if !paused {
            let apply = async {
                self.apply(&cluster, &applier, &live, &ask, &memory, &observed, available, trust.as_deref()).await?;
                certificates.renew(self.context, &cluster, &live).await
            };
            outcome.rotation = apply.instrument(span!("apply")).await?.or_else(|| certificates.not_served());
        }
        // There is no watch for what nodes serve and trust.
        let hurry = match (certificates.settling(self.context.settings()), &outcome.rotation) {
            (true, _) => Some(POLL),
            (false, Some(_)) => Some(UNSETTLED),
            (false, None) => None,
        };
        outcome.observed(&cluster, &observed, &certificates, self.context.settings());
        if !paused && self.clear_request(&memory, &observed).await? {
            outcome.stale = true;
            return Ok(Action::requeue(AGAIN));
        }
        self.catch_up(&memory, &mut observed, &target).await;

        let mut step = span!("plan").in_scope(|| plan(&ask, &memory, &observed));
        if let Step::GrowClaim { ordinal } = step {
            match steps::grow(self.context, &cluster, ordinal).await {
                Ok(()) => return Ok(self.done(outcome, &ask, &step, &observed, hurry)),
                // A volume that cannot grow blocks nothing else.
                Err(error) => outcome.growth_failed(&error),
            }
            observed.claims.values_mut().for_each(|claim| claim.requested = ask.storage_bytes);
            step = plan(&ask, &memory, &observed);
        }
        match &step {
            Step::Begin { operation, size } | Step::Advance { operation, size } => {
                outcome.operation(Some(operation.clone()), Some(*size));
            }
            Step::Finish => outcome.operation(None, memory.size),
            Step::Idle | Step::Wait { .. } | Step::Blocked { .. } => {}
            action => {
                let desired =
                    build(&cluster, self.context.settings(), available, observed_pods(&observed), trust.as_deref());
                let act = steps::carry_out(self.context, &cluster, &applier, &live, &desired, &target, action);
                act.instrument(span!("act")).await?;
            }
        }
        self.announce(&memory, &step, outcome).await;
        Ok(self.done(outcome, &ask, &step, &observed, hurry))
    }

    /// Reads the inputs.
    async fn look(
        &self,
        outcome: &mut Outcome,
        cluster: &Cluster,
        memory: &Memory,
        available: crate::build::Available,
        applier: &Applier,
    ) -> Result<Seen, ReconcileError> {
        let kinds: Vec<&str> = KINDS
            .iter()
            .filter(|(group, ..)| match *group {
                "cert-manager.io" => available.cert_manager,
                "monitoring.coreos.com" => available.pod_monitor,
                _ => true,
            })
            .map(|(_, _, kind, _)| *kind)
            .collect();
        let live = applier.live(&cluster.name, &kinds).await?;
        let mut certificates = Certificates::read(self.context, cluster, &live, available.cert_manager).await?;
        let target = certificates.target(cluster, memory.size.unwrap_or(0).max(cluster.spec.replicas));
        let Look { mut observed, unbound } = observe::observe(self.context, cluster, &live).await?;
        outcome.unbound = unbound;
        let answer = self.ask_cluster(&observed, &certificates, &target).await;
        observed.cluster = outcome.answered(answer);
        certificates.judge(observed.cluster.as_ref());
        Ok(Seen { live, certificates, target, observed })
    }

    fn done(
        &self,
        outcome: &mut Outcome,
        ask: &Ask,
        step: &Step,
        observed: &Observed,
        hurry: Option<Duration>,
    ) -> Action {
        outcome.conclude(ask, step, observed);
        let busy = outcome.status.operation.is_some();
        let pause = match step {
            step if step.acts() => {
                // Doubles with every repetition of the same step, which had no visible effect: up to 6.4 s.
                let times = self.context.repeated(&format!("ChronicleCluster/{}", self.key()), format!("{step:?}"));
                AGAIN * (1 << times.min(7))
            }
            Step::Idle => SETTLED,
            _ if ask.paused => SETTLED,
            _ if busy => POLL,
            _ => UNSETTLED,
        };
        Action::requeue(hurry.map_or(pause, |hurry| hurry.min(pause)))
    }

    fn ask(&self, cluster: &Cluster, revision: String) -> Ask {
        let spec = &cluster.spec;
        let replacement = spec.consensus.member_replacement;
        Ask {
            name: cluster.name.clone(),
            namespace: cluster.namespace.clone(),
            replicas: spec.replicas,
            storage_bytes: cluster.storage_bytes,
            revision,
            image: spec.image.clone(),
            files: config_files(cluster),
            version: spec.version.clone(),
            paused: spec.reconciliation == Reconciliation::Paused,
            delete_claims: spec.storage.retention.when_scaled == RetentionPolicy::Delete,
            voters: spec.consensus.voters,
            replace_lost: replacement.mode == ReplacementMode::Auto,
            replace_after_seconds: replacement.after_seconds,
            replace: self.resource.annotations().get(REPLACE).cloned(),
        }
    }

    async fn ask_cluster(
        &self,
        observed: &Observed,
        certificates: &Certificates,
        target: &Target,
    ) -> Option<Result<ClusterView, AdminError>> {
        let nobody = !observed.pods.values().any(|pod| pod.running);
        if nobody || !certificates.usable() {
            return None;
        }
        Some(self.context.admin().observe(target).await)
    }

    /// Applies the objects and the template of the StatefulSet. The plan decides on the number of pods.
    #[allow(clippy::too_many_arguments, reason = "the inputs of this reconcile")]
    async fn apply(
        &self,
        cluster: &Cluster,
        applier: &Applier,
        live: &BTreeMap<(String, String), DynamicObject>,
        ask: &Ask,
        memory: &Memory,
        observed: &Observed,
        available: crate::build::Available,
        trust: Option<&str>,
    ) -> Result<(), ReconcileError> {
        let pods = observed.set.as_ref().map_or_else(|| pods_wanted(ask, memory, observed), |set| set.replicas);
        let desired = build(cluster, self.context.settings(), available, pods, trust);
        for object in &desired.objects {
            applier.apply(object, live).await?;
        }
        let fits = |set: &crate::plan::SetView| set.template_bytes == cluster.storage_bytes && !set.terminating;
        if observed.set.as_ref().is_some_and(fits) {
            applier.apply(&dynamic(&desired.stateful_set), live).await?;
        }
        applier.remove_orphans(&desired.objects, live).await?;
        Ok(())
    }

    /// Removes the request for a replacement once the operation is recorded, or if the pod needs none. It must not apply to a later failure
    /// of the pod. Returns whether it was removed.
    async fn clear_request(&self, memory: &Memory, observed: &Observed) -> Result<bool, ReconcileError> {
        let Some(asked) = self.resource.annotations().get(REPLACE) else { return Ok(false) };
        let ordinal = ordinal_of(&self.resource.name_any(), asked);
        let pod = ordinal.and_then(|ordinal| observed.pods.get(&ordinal));
        let operation = memory.operation.as_ref();
        let begun =
            operation.is_some_and(|operation| operation.kind == OperationKind::Replace && operation.target == *asked);
        let needless = match pod {
            Some(pod) => pod.ready,
            // The pod is being recreated.
            None => ordinal.is_none_or(|ordinal| ordinal >= memory.size.unwrap_or(0)),
        };
        if !begun && !needless {
            return Ok(false);
        }
        if !begun {
            let note = format!("{asked} is ready or is not a pod of this cluster: not replacing its node");
            self.context.event(self.resource, EventKind::Warning, "ReplacementNotNeeded", &note).await;
        }
        let patch = json!({"metadata": {
            "annotations": {REPLACE: null}, "resourceVersion": self.resource.resource_version(), "uid": self.resource.uid(),
        }});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patched = self.api.patch(&self.resource.name_any(), &params, &Patch::Merge(patch)).await;
        patched.map_err(ReconcileError::kube("remove the replace annotation"))?;
        Ok(true)
    }

    /// Compares the replicas of the nodes that the operation depends on: the restarted node, or all nodes but the one that is restarted
    /// next.
    async fn catch_up(&self, memory: &Memory, observed: &mut Observed, target: &Target) {
        let Some(operation) = memory.operation.as_ref().filter(|_| observed.cluster.is_some()) else { return };
        let cluster = self.resource.name_any();
        let all = (0..memory.size.unwrap_or(0)).map(|ordinal| pod_name(&cluster, ordinal));
        let nodes: Vec<String> = match (operation.kind, operation.step) {
            (OperationKind::Roll | OperationKind::Replace, OperationStep::Join) => vec![operation.target.clone()],
            (OperationKind::Roll, OperationStep::Pod) => all.filter(|name| *name != operation.target).collect(),
            _ => return,
        };
        let ready = |name: &String| {
            let pod = ordinal_of(&cluster, name).and_then(|ordinal| observed.pods.get(&ordinal));
            pod.is_some_and(|pod| pod.ready)
        };
        if !nodes.iter().all(ready) {
            return;
        }
        observed.catch_up = match self.context.admin().catch_up(target, &nodes).await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(%error, target = operation.target, "cannot compare the replicas");
                CatchUp::Unknown
            }
        };
    }

    /// Records events: start and end of operations, and what needs a person, once each.
    async fn announce(&self, memory: &Memory, step: &Step, outcome: &Outcome) {
        let target = |operation: &crate::api::OperationStatus| match operation.target.as_str() {
            "" => "all nodes".to_owned(),
            target => target.to_owned(),
        };
        match step {
            Step::Begin { operation, .. } => {
                let reason = format!("{:?}Started", operation.kind);
                self.context.event(self.resource, EventKind::Normal, &reason, &target(operation)).await;
            }
            Step::Finish => {
                if let Some(operation) = &memory.operation {
                    let reason = format!("{:?}Finished", operation.kind);
                    self.context.event(self.resource, EventKind::Normal, &reason, &target(operation)).await;
                }
            }
            Step::Blocked { reason, message } if outcome.is_new_block(reason) => {
                self.context.event(self.resource, EventKind::Warning, reason, message).await;
            }
            _ => {}
        }
    }

    /// Writes the status if it has changed, unless the resource was changed since it was read.
    async fn write_status(&self, outcome: &Outcome) -> Result<(), ReconcileError> {
        let before = self.resource.status.clone().unwrap_or_default();
        if outcome.status == before {
            return Ok(());
        }
        let status: ClusterStatus = outcome.status.clone();
        let replacement = ChronicleCluster { status: Some(status), ..self.resource.clone() };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let written = self.api.replace_status(&self.resource.name_any(), &params, &replacement).await;
        match written {
            Err(error) if super::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(ReconcileError::kube("write the status")),
        }
    }
}

fn observed_pods(observed: &Observed) -> i32 {
    observed.set.as_ref().map_or(0, |set| set.replicas)
}

/// Returns names and addresses of the first `pods` pods of a cluster.
pub(super) fn addresses(cluster: &Cluster, pods: i32) -> Vec<(String, String)> {
    let pods = (0..pods).map(|ordinal| pod_name(&cluster.name, ordinal));
    pods.map(|pod| (pod.clone(), cluster.pod_address(&pod))).collect()
}
