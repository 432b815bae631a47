//! Deletes a cluster. Kubernetes deletes the owned objects; claims stay unless `spec.storage.retention.whenDeleted` is `Delete`.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Preconditions, PropagationPolicy};
use kube::runtime::controller::Action;

use super::remove_finalizer;
use crate::api::{ChronicleCluster, RetentionPolicy};
use crate::build::{CLUSTER_LABEL, ordinal_of};
use crate::controller::{Context, ReconcileError, is_conflict, is_not_found};

const POLL: Duration = Duration::from_secs(2);

/// Reconciles a cluster that is being deleted. With `Retain` it removes the finalizer at once: Kubernetes deletes the owned objects, and
/// claims have no owner. With `Delete` it deletes the StatefulSet, waits for the pods, deletes the claims, and then removes the finalizer.
pub(super) async fn delete(
    context: &Context,
    api: &Api<ChronicleCluster>,
    resource: &ChronicleCluster,
) -> Result<Action, ReconcileError> {
    let (name, namespace) = (resource.name_any(), resource.namespace().unwrap_or_default());
    if resource.spec.storage.retention.when_deleted == RetentionPolicy::Delete {
        let uid = resource.uid().unwrap_or_default();
        let sets: Api<StatefulSet> = Api::namespaced(context.client(), &namespace);
        let set = sets.get_opt(&name).await.map_err(ReconcileError::kube("get the StatefulSet"))?;
        let ours = |set: &StatefulSet| set.owner_references().iter().any(|owner| owner.uid == uid);
        if let Some(set) = set.filter(ours) {
            if set.metadata.deletion_timestamp.is_none() {
                let exactly = Preconditions { uid: set.uid(), resource_version: None };
                let params =
                    DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
                gone(sets.delete(&name, &params.preconditions(exactly)).await.map(drop), "delete the StatefulSet")?;
            }
            return Ok(Action::requeue(POLL));
        }
        let selected = ListParams::default().labels(&format!("{CLUSTER_LABEL}={name}"));
        let pods: Api<Pod> = Api::namespaced(context.client(), &namespace);
        let pods = pods.list(&selected).await.map_err(ReconcileError::kube("list pods"))?;
        if pods.items.iter().any(|pod| ordinal_of(&name, &pod.name_any()).is_some()) {
            return Ok(Action::requeue(POLL));
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client(), &namespace);
        let listed = claims.list(&selected).await.map_err(ReconcileError::kube("list claims"))?;
        for claim in listed.items.iter().filter(|claim| ordinal_of(&name, &claim.name_any()).is_some()) {
            let exactly = Preconditions { uid: claim.uid(), resource_version: None };
            let params = DeleteParams::default().preconditions(exactly);
            gone(claims.delete(&claim.name_any(), &params).await.map(drop), "delete a claim")?;
        }
    }
    context.forget(&format!("ChronicleCluster/{namespace}/{name}"));
    remove_finalizer(api, resource).await?;
    Ok(Action::await_change())
}

fn gone(result: Result<(), kube::Error>, action: &str) -> Result<(), ReconcileError> {
    match result {
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
        other => other.map_err(ReconcileError::kube(action)),
    }
}
