//! Executes a step of the plan: one call to the API server or to the cluster.
//!
//! Invariant: every deletion has the UID as a precondition, so that a repeated step, or one on stale state, has no effect.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use serde_json::json;

use crate::admin::Target;
use crate::build::{Cluster, REMOVED_NODE, RenderedObjects, claim_name, dynamic, pod_name};
use crate::controller::{Applier, Context, FIELD_MANAGER, LiveObjects, ReconcileError, is_conflict, is_not_found};
use crate::plan::Step;

pub(super) async fn carry_out(
    context: &Context,
    cluster: &Cluster,
    applier: &Applier,
    live: &LiveObjects,
    rendered: &RenderedObjects,
    target: &Target,
    step: &Step,
) -> Result<(), ReconcileError> {
    tracing::info!(cluster = %cluster.name, namespace = %cluster.namespace, ?step, "executing a step");
    match step {
        Step::ApplySet { replicas } => {
            let mut set = rendered.stateful_set.clone();
            if let Some(spec) = &mut set.spec {
                spec.replicas = Some(*replicas);
            }
            applier.apply(&dynamic(&set), live).await.map(drop)
        }
        Step::RecreateSet { uid } => {
            let sets: Api<StatefulSet> = Api::namespaced(context.client(), &cluster.namespace);
            let orphan =
                DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
            let exactly = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let name = &cluster.name;
            ignore_gone(
                sets.delete(name, &orphan.preconditions(exactly)).await.map(drop),
                format!("delete StatefulSet {name}"),
            )
        }
        Step::DeletePod { ordinal, uid, resource_version, force } => {
            let pods: Api<Pod> = Api::namespaced(context.client(), &cluster.namespace);
            let name = pod_name(&cluster.name, *ordinal);
            let exactly = Preconditions { uid: Some(uid.clone()), resource_version: resource_version.clone() };
            let mut params = DeleteParams::default().preconditions(exactly);
            if *force {
                params.grace_period_seconds = Some(0);
            }
            ignore_gone(pods.delete(&name, &params).await.map(drop), format!("delete pod {name}"))
        }
        Step::DeleteClaim { ordinal, uid } => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client(), &cluster.namespace);
            let name = claim_name(&cluster.name, *ordinal);
            let exactly = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let deleted = claims.delete(&name, &DeleteParams::default().preconditions(exactly)).await;
            ignore_gone(deleted.map(drop), format!("delete claim {name}"))
        }
        Step::MarkClaim { ordinal, node_id } => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client(), &cluster.namespace);
            let name = claim_name(&cluster.name, *ordinal);
            let patch = json!({"metadata": {"annotations": {REMOVED_NODE: node_id}}});
            let patched = claims.patch(&name, &ours(), &Patch::Merge(patch)).await;
            ignore_gone(patched.map(drop), format!("annotate claim {name}"))
        }
        Step::Drain { node_id } => {
            let done = context.admin().drain(target, node_id).await;
            done.map_err(ReconcileError::admin(format!("drain node {node_id}")))
        }
        Step::Undrain { node_id } => {
            let done = context.admin().undrain(target, node_id).await;
            done.map_err(ReconcileError::admin(format!("undrain node {node_id}")))
        }
        Step::Decommission { node_id } => {
            let done = context.admin().decommission(target, node_id).await;
            done.map_err(ReconcileError::admin(format!("decommission node {node_id}")))
        }
        Step::GrowClaim { ordinal } => grow(context, cluster, *ordinal).await,
        Step::Idle
        | Step::Wait { .. }
        | Step::Blocked { .. }
        | Step::Begin { .. }
        | Step::Advance { .. }
        | Step::Finish => Ok(()),
    }
}

/// Raises the requested size of a claim to that of the spec.
pub(super) async fn grow(context: &Context, cluster: &Cluster, ordinal: i32) -> Result<(), ReconcileError> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client(), &cluster.namespace);
    let name = claim_name(&cluster.name, ordinal);
    let patch = json!({"spec": {"resources": {"requests": {"storage": cluster.spec.storage.size}}}});
    let patched = claims.patch(&name, &ours(), &Patch::Merge(patch)).await;
    ignore_gone(patched.map(drop), format!("grow claim {name}"))
}

fn ours() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// Treats deleted and concurrently changed objects as success: the next reconcile reads them again.
fn ignore_gone(result: Result<(), kube::Error>, action: String) -> Result<(), ReconcileError> {
    match result {
        Err(error) if is_not_found(&error) || is_conflict(&error) => {
            tracing::debug!(action, %error, "the object has changed since it was read");
            Ok(())
        }
        other => other.map_err(ReconcileError::kube(action)),
    }
}
