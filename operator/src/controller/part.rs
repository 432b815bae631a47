//! What topics and users share: they are parts of a cluster, one condition `Ready` says how they are, and the cluster lets go of
//! them before they are deleted.

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

const AGAIN: Duration = Duration::from_millis(50);
const UNSETTLED: Duration = Duration::from_secs(5);
/// Drift is found this often: nothing tells of it.
const SETTLED: Duration = Duration::from_secs(120);

/// What came of a pass.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    holds: Option<bool>,
    reason: &'static str,
    message: String,
    pause: Duration,
}

impl Verdict {
    /// All is as asked for.
    pub(super) fn ready(reason: &'static str) -> Self {
        Self { holds: Some(true), reason, message: String::new(), pause: SETTLED }
    }

    /// It is not, and a person should know.
    pub(super) fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(false), reason, message: message.into(), pause: UNSETTLED }
    }

    /// It is not known, or not yet.
    pub(super) fn wait(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: None, reason, message: message.into(), pause: UNSETTLED }
    }

    /// A step was done; the next one follows at once.
    pub(super) fn again(reason: &'static str) -> Self {
        Self { holds: None, reason, message: String::new(), pause: AGAIN }
    }
}

/// Why something cannot be: the reason of a condition, and a message.
pub(super) type Why = (&'static str, String);

/// A resource that is a part of a cluster.
pub(super) trait Part:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its status.
    type Status: Clone + PartialEq + Send + Sync;

    /// The status as it is; a new one when there is none.
    fn status(&self) -> Self::Status;
    /// The resource with another status.
    fn with_status(self, status: Self::Status) -> Self;
    /// What a status says, and of which generation.
    fn parts(status: &mut Self::Status) -> (&mut Conditions, &mut Option<i64>);

    /// One step towards the spec.
    fn advance(
        &self,
        context: &Context,
        status: &mut Self::Status,
    ) -> impl Future<Output = Result<Verdict, ReconcileError>> + Send;

    /// Takes it out of the cluster; what is in the way, if anything is.
    fn let_go(&self, context: &Context) -> impl Future<Output = Result<Option<Why>, ReconcileError>> + Send;
}

/// One pass.
///
/// # Errors
/// What failed; [`ReconcileError::pause`] says when to try again.
pub(super) async fn pass<P: Part>(resource: &P, context: &Context) -> Result<Action, ReconcileError> {
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    let kind = P::kind(&());
    let api: Api<P> = Api::namespaced(context.client(), &namespace);
    let Some(resource) = api.get_opt(&name).await.map_err(ReconcileError::kube(format!("get the {kind}")))? else {
        return Ok(Action::await_change());
    };
    if resource.meta().deletion_timestamp.is_some() {
        if let Some((reason, why)) = resource.let_go(context).await? {
            let message = format!(
                "waiting to delete: {why}; to delete only this resource and keep what it manages in the cluster, set deletionPolicy to Retain"
            );
            let status = resource.status();
            report(context, &api, resource, status, &Verdict::no(reason, message)).await?;
            return Ok(Action::requeue(UNSETTLED));
        }
        context.succeeded(&format!("{kind}/{namespace}/{name}"));
        remove_finalizer(&api, &resource).await?;
        return Ok(Action::await_change());
    }
    if !resource.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        add_finalizer(&api, &resource).await?;
        return Ok(Action::requeue(AGAIN));
    }
    let mut status = resource.status();
    *P::parts(&mut status).1 = resource.meta().generation;
    let result = resource.advance(context, &mut status).await;
    let verdict = match &result {
        Ok(verdict) => verdict.clone(),
        Err(error) if error.is_transient() => Verdict::wait("ClusterUnavailable", error.to_string()),
        Err(error) => Verdict::no(error.reason(), error.to_string()),
    };
    report(context, &api, resource, status, &verdict).await?;
    result.map(|_| Action::requeue(verdict.pause))
}

/// Writes the status with a verdict, if that makes it another one; tells people what is new and bad.
async fn report<P: Part>(
    context: &Context,
    api: &Api<P>,
    resource: P,
    mut status: P::Status,
    verdict: &Verdict,
) -> Result<(), ReconcileError> {
    let mut before = resource.status();
    let known = condition_of(P::parts(&mut before).0, ConditionType::Ready);
    if verdict.holds == Some(false) && known.is_none_or(|known| known.reason != verdict.reason) {
        context.event(&resource, EventKind::Warning, verdict.reason, &verdict.message).await;
    }
    let (conditions, generation) = (P::parts(&mut status).0, resource.meta().generation);
    let (holds, reason, message) = (verdict.holds, verdict.reason, verdict.message.clone());
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

/// How to reach the cluster that a resource refers to; the error inside says why it cannot be.
pub(super) async fn reach(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Result<(Target, Cluster), Why>, ReconcileError> {
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

/// `None`: the cluster is gone or going, so that there is nothing to delete from. The error inside says why it cannot be reached
/// now.
pub(super) async fn while_cluster_is_there(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Option<Result<Target, Why>>, ReconcileError> {
    let clusters: Api<ChronicleCluster> = Api::namespaced(context.client(), namespace);
    let found =
        clusters.get_opt(cluster).await.map_err(ReconcileError::kube(format!("get ChronicleCluster {cluster}")))?;
    if found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()) {
        return Ok(None);
    }
    Ok(Some(reach(context, namespace, cluster).await?.map(|(target, _)| target)))
}
