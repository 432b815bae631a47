//! Reconciles a ChronicleCluster: validate, read the inputs, apply the objects, plan, execute one step, write the status.
//!
//! Invariants:
//! - A decision depends only on state that the same reconcile has read from the API server and the nodes, never on a cache.
//! - One reconcile executes at most one step of the plan. An operation is recorded in the status before its first step.
//! - While `spec.reconciliation` is `Paused`, only the status and the finalizer are written.
//!
//! Neighbours: `observe.rs` reads pods, claims and machines, `rotation.rs` reads certificates and rotates CAs, `steps.rs` executes a step,
//! `report.rs` builds the status, `delete.rs` handles deletion.

mod delete;
mod observe;
mod report;
mod rotation;
mod steps;
#[cfg(test)]
mod tests;
mod x509;

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tracing::Instrument;

pub use rotation::{Certificates, operator_target};
pub(super) use rotation::{issued_at, reissue, text as secret_text};

use super::{Applier, Context, EventKind, FIELD_MANAGER, FINALIZER, LiveObjects, ReconcileError};
use crate::admin::{AdminError, Target};
use crate::api::{
    ChronicleCluster, ClusterStatus, OperationKind, OperationStep, Reconciliation, ReplacementMode, RetentionPolicy,
};
use crate::build::{Cluster, KINDS, REPLACE, build, config_files, dynamic, ordinal_of, pod_name, validate};
use crate::plan::{CatchUp, ClusterView, DesiredState, ObservedState, RecordedState, Step, plan, pods_wanted};
use crate::telemetry::SPANS;
use observe::KubernetesState;
use report::StatusReport;

/// Delay after a step.
const AFTER_STEP: Duration = Duration::from_millis(50);
/// Poll interval while an operation waits for nodes, for which there is no watch.
const POLL: Duration = Duration::from_secs(1);
/// Poll interval while the cluster has not converged and no operation is in progress.
const POLL_UNCONVERGED: Duration = Duration::from_secs(5);
/// Poll interval of a converged cluster.
const RESYNC: Duration = Duration::from_secs(60);

/// Reconciles one cluster.
///
/// # Errors
/// The failure; [`super::ReconcileError::retry_delay`] has the delay of the retry.
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
        return Ok(Action::requeue(AFTER_STEP));
    }
    Reconciler { context: &context, api: &api, resource: &resource }.run().await
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

struct Reconciler<'a> {
    context: &'a Context,
    api: &'a Api<ChronicleCluster>,
    resource: &'a ChronicleCluster,
}

/// Everything that a reconcile reads before it writes.
struct Inputs {
    live: LiveObjects,
    certificates: Certificates,
    target: Target,
    observed: ObservedState,
}

/// The trace span of a phase of a reconcile.
macro_rules! span {
    ($name:literal) => {
        tracing::debug_span!(target: SPANS, $name)
    };
}

impl Reconciler<'_> {
    fn key(&self) -> String {
        format!("{}/{}", self.resource.namespace().unwrap_or_default(), self.resource.name_any())
    }

    async fn run(&self) -> Result<Action, ReconcileError> {
        let mut report = StatusReport::new(self.resource, self.context.now());
        let result = self.steps(&mut report).await;
        if report.stale {
            // The resource was changed in this reconcile. The next one writes the status.
            return result;
        }
        if let Err(error) = &result {
            let (reason, key) = (error.reason(), format!("ChronicleCluster/{}", self.key()));
            if !error.is_transient() && report.is_new_reason(reason) {
                self.context.event(self.resource, EventKind::Warning, reason, &error.to_string()).await;
            }
            report.failed(error, self.context.failures(&key) + 1);
        }
        let written = self.write_status(&report).instrument(span!("status")).await;
        let action = result?;
        written?;
        Ok(action)
    }

    async fn steps(&self, report: &mut StatusReport) -> Result<Action, ReconcileError> {
        let status = self.resource.status.clone().unwrap_or_default();
        let recorded = RecordedState {
            operation: status.operation.clone(),
            size: status.size,
            cluster_id: status.cluster_id.clone(),
        };
        let initial_nodes = recorded.size.unwrap_or(self.resource.spec.replicas).max(1);
        let cluster = match validate(self.resource, initial_nodes, recorded.cluster_id.is_some()) {
            Ok(cluster) => cluster,
            Err(invalid) => {
                if report.is_new_reason("InvalidSpec") {
                    self.context.event(self.resource, EventKind::Warning, "InvalidSpec", &invalid.to_string()).await;
                }
                report.invalid(&invalid.to_string());
                return Ok(Action::await_change());
            }
        };
        report.describe(&cluster);
        let apis = self.context.optional_apis().await;
        let applier = Applier::new(self.context.client(), &cluster.namespace, cluster.owner())
            .with_persistent_drift(self.context.persistent_drift());
        let inputs = self.read_inputs(report, &cluster, &recorded, apis, &applier);
        let Inputs { live, certificates, target, mut observed } = inputs.instrument(span!("observe")).await?;

        let paused = cluster.spec.reconciliation == Reconciliation::Paused;
        let trust = certificates.trust();
        let revision = build(&cluster, self.context.settings(), apis, 0, trust.as_deref()).revision;
        observed.not_ready_to_start = certificates.not_ready();
        let desired = self.desired(&cluster, revision);
        if !paused {
            let apply = async {
                self.apply(&cluster, &applier, &live, &desired, &recorded, &observed, apis, trust.as_deref()).await?;
                certificates.renew(self.context, &cluster, &live).await
            };
            report.rotation = apply.instrument(span!("apply")).await?.or_else(|| certificates.not_served());
        }
        // There is no watch for what nodes serve and trust.
        let rotation_poll = match (certificates.settling(self.context.settings()), &report.rotation) {
            (true, _) => Some(POLL),
            (false, Some(_)) => Some(POLL_UNCONVERGED),
            (false, None) => None,
        };
        report.observed(&cluster, &observed, &certificates, self.context.settings());
        if !paused && self.clear_request(&recorded, &observed).await? {
            report.stale = true;
            return Ok(Action::requeue(AFTER_STEP));
        }
        self.catch_up(&recorded, &mut observed, &target).await;

        let mut step = span!("plan").in_scope(|| plan(&desired, &recorded, &observed));
        if let Step::GrowClaim { ordinal } = step {
            match steps::grow(self.context, &cluster, ordinal).await {
                Ok(()) => return Ok(self.done(report, &desired, &step, &observed, rotation_poll)),
                // A volume that cannot grow blocks nothing else.
                Err(error) => report.growth_failed(&error),
            }
            observed.claims.values_mut().for_each(|claim| claim.requested = desired.storage_bytes);
            step = plan(&desired, &recorded, &observed);
        }
        match &step {
            Step::Begin { operation, size } | Step::Advance { operation, size } => {
                report.operation(Some(operation.clone()), Some(*size));
            }
            Step::Finish => report.operation(None, recorded.size),
            Step::Idle | Step::Wait { .. } | Step::Blocked { .. } => {}
            action => {
                let rendered =
                    build(&cluster, self.context.settings(), apis, observed_pods(&observed), trust.as_deref());
                let act = steps::carry_out(self.context, &cluster, &applier, &live, &rendered, &target, action);
                act.instrument(span!("act")).await?;
            }
        }
        self.announce(&recorded, &step, report).await;
        Ok(self.done(report, &desired, &step, &observed, rotation_poll))
    }

    /// Reads the inputs.
    async fn read_inputs(
        &self,
        report: &mut StatusReport,
        cluster: &Cluster,
        recorded: &RecordedState,
        apis: crate::build::OptionalApis,
        applier: &Applier,
    ) -> Result<Inputs, ReconcileError> {
        let kinds: Vec<&str> = KINDS
            .iter()
            .filter(|(group, ..)| match *group {
                "cert-manager.io" => apis.cert_manager,
                "monitoring.coreos.com" => apis.pod_monitor,
                _ => true,
            })
            .map(|(_, _, kind, _)| *kind)
            .collect();
        let live = applier.live(&cluster.name, &kinds).await?;
        let mut certificates = Certificates::read(self.context, cluster, &live, apis.cert_manager).await?;
        let target = certificates.target(cluster, recorded.size.unwrap_or(0).max(cluster.spec.replicas));
        let KubernetesState { mut observed, unbound } = observe::observe(self.context, cluster, &live).await?;
        report.unbound = unbound;
        let answer = self.query_cluster(&observed, &certificates, &target).await;
        observed.cluster = report.answered(answer);
        certificates.compare_served(observed.cluster.as_ref());
        Ok(Inputs { live, certificates, target, observed })
    }

    fn done(
        &self,
        report: &mut StatusReport,
        desired: &DesiredState,
        step: &Step,
        observed: &ObservedState,
        rotation_poll: Option<Duration>,
    ) -> Action {
        report.conclude(desired, step, observed);
        let busy = report.status.operation.is_some();
        let pause = match step {
            step if step.acts() => {
                // Doubles with every repetition of the same step, which had no visible effect: up to 6.4 s.
                let times = self.context.repeated(&format!("ChronicleCluster/{}", self.key()), format!("{step:?}"));
                AFTER_STEP * (1 << times.min(7))
            }
            Step::Idle => RESYNC,
            _ if desired.paused => RESYNC,
            _ if busy => POLL,
            _ => POLL_UNCONVERGED,
        };
        Action::requeue(rotation_poll.map_or(pause, |rotation_poll| rotation_poll.min(pause)))
    }

    fn desired(&self, cluster: &Cluster, revision: String) -> DesiredState {
        let spec = &cluster.spec;
        let replacement = spec.consensus.member_replacement;
        DesiredState {
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

    async fn query_cluster(
        &self,
        observed: &ObservedState,
        certificates: &Certificates,
        target: &Target,
    ) -> Option<Result<ClusterView, AdminError>> {
        let none_running = !observed.pods.values().any(|pod| pod.running);
        if none_running || !certificates.usable() {
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
        live: &LiveObjects,
        desired: &DesiredState,
        recorded: &RecordedState,
        observed: &ObservedState,
        apis: crate::build::OptionalApis,
        trust: Option<&str>,
    ) -> Result<(), ReconcileError> {
        let pods = observed.set.as_ref().map_or_else(|| pods_wanted(desired, recorded, observed), |set| set.replicas);
        let rendered = build(cluster, self.context.settings(), apis, pods, trust);
        for object in &rendered.objects {
            applier.apply(object, live).await?;
        }
        let fits = |set: &crate::plan::SetView| set.template_bytes == cluster.storage_bytes && !set.terminating;
        if observed.set.as_ref().is_some_and(fits) {
            applier.apply(&dynamic(&rendered.stateful_set), live).await?;
        }
        applier.remove_orphans(&rendered.objects, live).await?;
        Ok(())
    }

    /// Removes the request for a replacement once the operation is recorded, or if the pod needs none. It must not apply to a later failure
    /// of the pod. Returns whether it was removed.
    async fn clear_request(&self, recorded: &RecordedState, observed: &ObservedState) -> Result<bool, ReconcileError> {
        let Some(asked) = self.resource.annotations().get(REPLACE) else { return Ok(false) };
        let ordinal = ordinal_of(&self.resource.name_any(), asked);
        let pod = ordinal.and_then(|ordinal| observed.pods.get(&ordinal));
        let operation = recorded.operation.as_ref();
        let begun =
            operation.is_some_and(|operation| operation.kind == OperationKind::Replace && operation.target == *asked);
        let needless = match pod {
            Some(pod) => pod.ready,
            // The pod is being recreated.
            None => ordinal.is_none_or(|ordinal| ordinal >= recorded.size.unwrap_or(0)),
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
    async fn catch_up(&self, recorded: &RecordedState, observed: &mut ObservedState, target: &Target) {
        let Some(operation) = recorded.operation.as_ref().filter(|_| observed.cluster.is_some()) else { return };
        let cluster = self.resource.name_any();
        let all = (0..recorded.size.unwrap_or(0)).map(|ordinal| pod_name(&cluster, ordinal));
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
    async fn announce(&self, recorded: &RecordedState, step: &Step, report: &StatusReport) {
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
                if let Some(operation) = &recorded.operation {
                    let reason = format!("{:?}Finished", operation.kind);
                    self.context.event(self.resource, EventKind::Normal, &reason, &target(operation)).await;
                }
            }
            Step::Blocked { reason, message } if report.is_new_block(reason) => {
                self.context.event(self.resource, EventKind::Warning, reason, message).await;
            }
            _ => {}
        }
    }

    /// Writes the status if it has changed, unless the resource was changed since it was read.
    async fn write_status(&self, report: &StatusReport) -> Result<(), ReconcileError> {
        let before = self.resource.status.clone().unwrap_or_default();
        if report.status == before {
            return Ok(());
        }
        let status: ClusterStatus = report.status.clone();
        let replacement = ChronicleCluster { status: Some(status), ..self.resource.clone() };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let written = self.api.replace_status(&self.resource.name_any(), &params, &replacement).await;
        match written {
            Err(error) if super::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(ReconcileError::kube("write the status")),
        }
    }
}

fn observed_pods(observed: &ObservedState) -> i32 {
    observed.set.as_ref().map_or(0, |set| set.replicas)
}
