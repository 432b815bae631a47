//! The reconcile of topics and users, which both belong to a cluster: finalizer, the condition `Ready`, access to the cluster, deletion.
//!
//! Invariant: the finalizer is removed only after the resource has cleaned up in the cluster, or has nothing to clean up.
//!
//! Neighbours: `topic.rs` and `user.rs` implement the trait.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use kube::api::{Api, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cluster::{add_finalizer, operator_target, remove_finalizer};
use super::{Context, EventKind, FIELD_MANAGER, FINALIZER, ReconcileError, is_not_found};
use crate::admin::Target;
use crate::api::{ChronicleCluster, ConditionType, Conditions, condition_of, set_condition};
use crate::build::{Cluster, validate};

const AFTER_STEP: Duration = Duration::from_millis(50);
const POLL_UNCONVERGED: Duration = Duration::from_secs(5);
/// Interval of drift detection in the cluster, for which there is no watch.
const RESYNC: Duration = Duration::from_secs(120);

/// Result of a reconcile: the condition `Ready`, and the delay until the next reconcile.
#[derive(Debug, Clone)]
pub(super) struct ReadyState {
    holds: Option<bool>,
    reason: &'static str,
    message: String,
    pause: Duration,
}

impl ReadyState {
    /// The resource matches its spec.
    pub(super) fn ready(reason: &'static str) -> Self {
        Self { holds: Some(true), reason, message: String::new(), pause: RESYNC }
    }

    /// The resource does not match its spec, and a person should act.
    pub(super) fn not_ready(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(false), reason, message: message.into(), pause: POLL_UNCONVERGED }
    }

    /// The state is not known, or the resource waits for something.
    pub(super) fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: None, reason, message: message.into(), pause: POLL_UNCONVERGED }
    }

    /// A step was done. The next reconcile follows at once.
    pub(super) fn step_done(reason: &'static str) -> Self {
        Self { holds: None, reason, message: String::new(), pause: AFTER_STEP }
    }
}

/// What blocks progress: reason and message of a condition.
pub(super) type Blocker = (&'static str, String);

/// A resource that belongs to a cluster.
pub(super) trait ChildResource:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Type of its status.
    type Status: Clone + PartialEq + Send + Sync;

    /// Returns the status; an empty one if there is none.
    fn status(&self) -> Self::Status;
    /// Returns the resource with another status.
    fn with_status(self, status: Self::Status) -> Self;
    /// Returns conditions and observed generation of a status.
    fn conditions_mut(status: &mut Self::Status) -> (&mut Conditions, &mut Option<i64>);

    /// Does one step towards the spec.
    fn advance(
        &self,
        context: &Context,
        status: &mut Self::Status,
    ) -> impl Future<Output = Result<ReadyState, ReconcileError>> + Send;

    /// Cleans up in the cluster before the deletion. Returns what blocks that, if anything.
    fn finalize(&self, context: &Context) -> impl Future<Output = Result<Option<Blocker>, ReconcileError>> + Send;
}

/// Reconciles one resource.
///
/// # Errors
/// The failure; [`ReconcileError::retry_delay`] has the delay of the retry.
pub(super) async fn reconcile<P: ChildResource>(resource: &P, context: &Context) -> Result<Action, ReconcileError> {
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    let kind = P::kind(&());
    let api: Api<P> = Api::namespaced(context.client(), &namespace);
    let Some(resource) = api.get_opt(&name).await.map_err(ReconcileError::kube(format!("get the {kind}")))? else {
        return Ok(Action::await_change());
    };
    if resource.meta().deletion_timestamp.is_some() {
        if let Some((reason, why)) = resource.finalize(context).await? {
            let message = format!(
                "waiting to delete: {why}; to delete only this resource and keep what it manages in the cluster, set deletionPolicy to Retain"
            );
            let status = resource.status();
            report(context, &api, resource, status, &ReadyState::not_ready(reason, message)).await?;
            return Ok(Action::requeue(POLL_UNCONVERGED));
        }
        context.succeeded(&format!("{kind}/{namespace}/{name}"));
        remove_finalizer(&api, &resource).await?;
        return Ok(Action::await_change());
    }
    if !resource.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        add_finalizer(&api, &resource).await?;
        return Ok(Action::requeue(AFTER_STEP));
    }
    let mut status = resource.status();
    *P::conditions_mut(&mut status).1 = resource.meta().generation;
    let result = resource.advance(context, &mut status).await;
    let ready = match &result {
        Ok(ready) => ready.clone(),
        Err(error) if error.is_transient() => ReadyState::unknown("ClusterUnavailable", error.to_string()),
        Err(error) => ReadyState::not_ready(error.reason(), error.to_string()),
    };
    report(context, &api, resource, status, &ready).await?;
    result.map(|_| Action::requeue(ready.pause))
}

/// Writes the status if it has changed, and a warning event for a new problem.
async fn report<P: ChildResource>(
    context: &Context,
    api: &Api<P>,
    resource: P,
    mut status: P::Status,
    ready: &ReadyState,
) -> Result<(), ReconcileError> {
    let mut before = resource.status();
    let known = condition_of(P::conditions_mut(&mut before).0, ConditionType::Ready);
    if ready.holds == Some(false) && known.is_none_or(|known| known.reason != ready.reason) {
        context.event(&resource, EventKind::Warning, ready.reason, &ready.message).await;
    }
    let (conditions, generation) = (P::conditions_mut(&mut status).0, resource.meta().generation);
    let (holds, reason, message) = (ready.holds, ready.reason, ready.message.clone());
    set_condition(conditions, ConditionType::Ready, holds, reason, message, generation, context.now());
    if status != before {
        let name = resource.name_any();
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        match api.replace_status(&name, &params, &resource.with_status(status)).await {
            Err(error) if is_not_found(&error) => {}
            other => drop(other.map_err(ReconcileError::kube("write the status"))?),
        }
    }
    Ok(())
}

/// Returns how to reach the cluster of a resource. The inner error says why it cannot be reached.
pub(super) async fn resolve_cluster(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Result<(Target, Cluster), Blocker>, ReconcileError> {
    let clusters: Api<ChronicleCluster> = Api::namespaced(context.client(), namespace);
    let found =
        clusters.get_opt(cluster).await.map_err(ReconcileError::kube(format!("get ChronicleCluster {cluster}")))?;
    let Some(found) = found else {
        return Ok(Err(("ClusterMissing", format!("ChronicleCluster {cluster} does not exist in this namespace"))));
    };
    let status = found.status.clone().unwrap_or_default();
    let size = status.size.unwrap_or(0);
    if status.cluster_id.is_none() || status.ready_replicas == 0 {
        return Ok(Err(("ClusterNotReady", format!("ChronicleCluster {cluster} has no ready node"))));
    }
    match validate(&found, size, true) {
        Err(invalid) => Ok(Err(("ClusterNotReady", format!("ChronicleCluster {cluster}: {invalid}")))),
        Ok(valid) => match operator_target(context, &valid, size).await? {
            Some(target) => Ok(Ok((target, valid))),
            None => Ok(Err(("ClusterNotReady", format!("ChronicleCluster {cluster} has no certificates yet")))),
        },
    }
}

/// Returns how to reach the cluster for a cleanup; `None`: the cluster is deleted or being deleted, so there is nothing to clean up. The
/// inner error says why it cannot be reached.
pub(super) async fn resolve_for_deletion(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Option<Result<Target, Blocker>>, ReconcileError> {
    let clusters: Api<ChronicleCluster> = Api::namespaced(context.client(), namespace);
    let found =
        clusters.get_opt(cluster).await.map_err(ReconcileError::kube(format!("get ChronicleCluster {cluster}")))?;
    if found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()) {
        return Ok(None);
    }
    Ok(Some(resolve_cluster(context, namespace, cluster).await?.map(|(target, _)| target)))
}
