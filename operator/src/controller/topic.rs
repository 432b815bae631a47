//! Reconciles a ChronicleTopic: makes, changes, takes over, watches or deletes one topic of a cluster.
//!
//! Before a topic is made, the status says that it is this resource's (`owned`): an operator that is killed between the two finds
//! the topic as its own. A topic that somebody else made is never changed or deleted under the policy `Manage`.

use std::sync::Arc;
use std::time::Duration;

use chronicle_client::v1;
use kube::api::{Api, PostParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::cluster::{add_finalizer, operator_target, remove_finalizer};
use super::{Context, EventKind, FIELD_MANAGER, FINALIZER, ReconcileError, is_not_found};
use crate::admin::{AdminError, Target};
use crate::api::{
    ChronicleCluster, ChronicleTopic, ConditionType, DeletionPolicy, Durability, ManagementPolicy, TopicStatus,
    condition_of, set_condition,
};
use crate::build::validate;

const AGAIN: Duration = Duration::from_millis(50);
const UNSETTLED: Duration = Duration::from_secs(10);
/// Drift is found this often: nothing tells of it.
const SETTLED: Duration = Duration::from_secs(120);

/// One pass.
///
/// # Errors
/// What failed; [`ReconcileError::pause`] says when to try again.
pub async fn reconcile(resource: Arc<ChronicleTopic>, context: Context) -> Result<Action, ReconcileError> {
    let namespace = resource.namespace().unwrap_or_default();
    let api: Api<ChronicleTopic> = Api::namespaced(context.client(), &namespace);
    let name = resource.name_any();
    let Some(resource) = api.get_opt(&name).await.map_err(ReconcileError::kube("get the ChronicleTopic"))? else {
        return Ok(Action::await_change());
    };
    if resource.meta().deletion_timestamp.is_some() {
        return delete(&context, &api, &resource).await;
    }
    if !resource.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        add_finalizer(&api, &resource).await?;
        return Ok(Action::requeue(AGAIN));
    }
    let before = resource.status.clone().unwrap_or_default();
    let mut status = TopicStatus { observed_generation: resource.meta().generation, ..before.clone() };
    let result = go(&context, &resource, &mut status).await;
    let verdict = match &result {
        Ok(verdict) => verdict.clone(),
        Err(error) if error.is_transient() => Verdict::wait("ClusterUnavailable", error.to_string()),
        Err(error) => Verdict::no(error.reason(), error.to_string()),
    };
    let news =
        condition_of(&before.conditions, ConditionType::Ready).is_none_or(|known| known.reason != verdict.reason);
    let generation = status.observed_generation;
    let (reason, message) = (verdict.reason, verdict.message.clone());
    set_condition(
        &mut status.conditions,
        ConditionType::Ready,
        verdict.holds,
        reason,
        message,
        generation,
        context.now(),
    );
    if news && verdict.holds == Some(false) {
        context.event(&resource, EventKind::Warning, verdict.reason, &verdict.message).await;
    }
    if status != before {
        let replacement = ChronicleTopic { status: Some(status), ..resource };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let written = api.replace_status(&name, &params, &replacement).await;
        written.map_err(ReconcileError::kube("write the status"))?;
    }
    result.map(|verdict| Action::requeue(verdict.pause))
}

/// What came of it.
#[derive(Debug, Clone)]
struct Verdict {
    holds: Option<bool>,
    reason: &'static str,
    message: String,
    pause: Duration,
}

impl Verdict {
    fn ready(reason: &'static str) -> Self {
        Self { holds: Some(true), reason, message: String::new(), pause: SETTLED }
    }

    fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(false), reason, message: message.into(), pause: UNSETTLED }
    }

    fn wait(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: None, reason, message: message.into(), pause: UNSETTLED }
    }

    fn again(reason: &'static str) -> Self {
        Self { holds: None, reason, message: String::new(), pause: AGAIN }
    }
}

/// How to reach the cluster that a resource refers to; the error says why it cannot be.
pub(super) async fn reach(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Result<(Target, crate::build::Cluster), (&'static str, String)>, ReconcileError> {
    let clusters: Api<ChronicleCluster> = Api::namespaced(context.client(), namespace);
    let found =
        clusters.get_opt(cluster).await.map_err(ReconcileError::kube(format!("get ChronicleCluster {cluster}")))?;
    let Some(found) = found else {
        return Ok(Err(("ClusterMissing", format!("there is no ChronicleCluster {cluster} in this namespace"))));
    };
    let status = found.status.clone().unwrap_or_default();
    let size = status.size.unwrap_or(0);
    if status.cluster_id.is_none() || status.ready_replicas == 0 {
        return Ok(Err(("ClusterNotReady", format!("ChronicleCluster {cluster} has no node that serves"))));
    }
    match validate(&found, size, true) {
        Err(invalid) => Ok(Err(("ClusterNotReady", format!("ChronicleCluster {cluster}: {invalid}")))),
        Ok(valid) => match operator_target(context, &valid, size).await? {
            Some(target) => Ok(Ok((target, valid))),
            None => Ok(Err(("ClusterNotReady", format!("ChronicleCluster {cluster} has no certificates yet")))),
        },
    }
}

fn name_of(resource: &ChronicleTopic) -> String {
    resource.spec.topic_name.clone().unwrap_or_else(|| resource.name_any())
}

async fn go(context: &Context, resource: &ChronicleTopic, status: &mut TopicStatus) -> Result<Verdict, ReconcileError> {
    let spec = &resource.spec;
    let namespace = resource.namespace().unwrap_or_default();
    let (target, _) = match reach(context, &namespace, &spec.cluster_ref.name).await? {
        Ok(reached) => reached,
        Err((reason, message)) => return Ok(Verdict::wait(reason, message)),
    };
    let name = name_of(resource);
    if !status.owned && spec.management_policy != ManagementPolicy::Observe {
        let taken = other_owner(context, resource, &namespace, &name).await?;
        if let Some(other) = taken {
            return Ok(Verdict::no("Conflict", format!("topic {name} is that of ChronicleTopic {other}")));
        }
    }
    let admin = context.admin();
    let found = admin.topic(&target, &name).await.map_err(ReconcileError::admin(format!("describe topic {name}")))?;
    status.topic_name = Some(name.clone());
    match (spec.management_policy, found) {
        (ManagementPolicy::Observe, None) => {
            report(status, None);
            Ok(Verdict::no("TopicMissing", format!("there is no topic {name}, and the policy Observe makes none")))
        }
        (ManagementPolicy::Observe, Some(topic)) => {
            status.owned = false;
            report(status, Some(&topic));
            Ok(match drift(resource, &topic) {
                Drift::None => Verdict::ready("Observed"),
                Drift::Change { what, .. } | Drift::Impossible(what) => Verdict::no("Drifted", what),
            })
        }
        (_, None) if !status.owned => {
            // Written before the topic is made.
            status.owned = true;
            Ok(Verdict::again("Creating"))
        }
        (_, None) => {
            let request = v1::CreateTopicRequest {
                name: name.clone(),
                partitions: spec.partitions,
                replication_factor: spec.replication_factor.unwrap_or(0),
                settings: Some(settings(resource)),
                if_not_exists: true,
            };
            let made = admin.create_topic(&target, request).await;
            let topic = made.map_err(ReconcileError::admin(format!("create topic {name}")))?;
            report(status, Some(&topic));
            Ok(Verdict::again("Created"))
        }
        (ManagementPolicy::Manage, Some(topic)) if !status.owned => {
            report(status, Some(&topic));
            let rule = "set managementPolicy to Adopt to take it over, or to Observe to leave it alone";
            Ok(Verdict::no("TopicExists", format!("topic {name} was made by somebody else: {rule}")))
        }
        (ManagementPolicy::Adopt, Some(topic)) if !status.owned => {
            status.owned = true;
            report(status, Some(&topic));
            Ok(Verdict::again("Adopted"))
        }
        (_, Some(topic)) => {
            report(status, Some(&topic));
            match drift(resource, &topic) {
                Drift::None => Ok(Verdict::ready("InSync")),
                Drift::Impossible(why) => Ok(Verdict::no("CannotChange", why)),
                Drift::Change { request, .. } => {
                    let changed = admin.alter_topic(&target, request).await;
                    let topic = changed.map_err(ReconcileError::admin(format!("alter topic {name}")))?;
                    report(status, Some(&topic));
                    Ok(match drift(resource, &topic) {
                        Drift::None => Verdict::ready("InSync"),
                        Drift::Change { what, .. } | Drift::Impossible(what) => Verdict::no("NotApplied", what),
                    })
                }
            }
        }
    }
}

/// Another resource of this namespace that has the topic.
async fn other_owner(
    context: &Context,
    resource: &ChronicleTopic,
    namespace: &str,
    topic: &str,
) -> Result<Option<String>, ReconcileError> {
    let topics: Api<ChronicleTopic> = Api::namespaced(context.client(), namespace);
    let all =
        topics.list(&kube::api::ListParams::default()).await.map_err(ReconcileError::kube("list ChronicleTopics"))?;
    let same = all.items.iter().find(|other| {
        other.uid() != resource.uid()
            && other.spec.cluster_ref == resource.spec.cluster_ref
            && name_of(other) == topic
            && other.status.as_ref().is_some_and(|status| status.owned)
    });
    Ok(same.map(ResourceExt::name_any))
}

fn report(status: &mut TopicStatus, topic: Option<&v1::Topic>) {
    status.topic_id = topic.map(|topic| topic.id.clone());
    status.partitions = topic.map(|topic| topic.partitions);
    status.replication_factor = topic.map(|topic| topic.replication_factor);
}

/// What is asked for; what is not asked for is absent, that is, the default.
fn settings(resource: &ChronicleTopic) -> v1::TopicSettings {
    let spec = &resource.spec;
    v1::TopicSettings {
        retention_bytes: Some(spec.retention.bytes.unwrap_or(-1)),
        retention_ms: Some(spec.retention.ms.unwrap_or(-1)),
        segment_bytes: spec.segment_bytes,
        max_message_bytes: spec.max_message_bytes,
        durability: Some(match spec.durability {
            Durability::Fsync => v1::Durability::Fsync.into(),
            Durability::Memory => v1::Durability::Memory.into(),
        }),
        flush_interval_ms: spec.flush_interval_ms,
    }
}

#[derive(Debug, PartialEq)]
enum Drift {
    None,
    Change { what: String, request: v1::AlterTopicRequest },
    Impossible(String),
}

/// How a topic differs from what is asked for.
fn drift(resource: &ChronicleTopic, topic: &v1::Topic) -> Drift {
    let spec = &resource.spec;
    if let Some(asked) = spec.replication_factor.filter(|asked| *asked != topic.replication_factor) {
        let there = topic.replication_factor;
        return Drift::Impossible(format!(
            "replicationFactor: {asked}: the topic has {there}, which cannot be changed"
        ));
    }
    if spec.partitions < topic.partitions {
        let (asked, there) = (spec.partitions, topic.partitions);
        return Drift::Impossible(format!("partitions: {asked}: the topic has {there}, and cannot have fewer"));
    }
    let (asked, there) = (settings(resource), topic.settings.unwrap_or_default());
    let mut changed = v1::TopicSettings::default();
    let mut what = Vec::new();
    macro_rules! compare {
        ($($field:ident),*) => {
            $(if asked.$field.is_some() && asked.$field != there.$field {
                changed.$field = asked.$field;
                what.push(stringify!($field));
            })*
        };
    }
    compare!(retention_bytes, retention_ms, segment_bytes, max_message_bytes, durability, flush_interval_ms);
    let partitions = if spec.partitions > topic.partitions { spec.partitions } else { 0 };
    if partitions > 0 {
        what.push("partitions");
    }
    if what.is_empty() {
        return Drift::None;
    }
    let request = v1::AlterTopicRequest { name: topic.name.clone(), partitions, settings: Some(changed) };
    Drift::Change { what: format!("the topic differs in {}", what.join(", ")), request }
}

async fn delete(
    context: &Context,
    api: &Api<ChronicleTopic>,
    resource: &ChronicleTopic,
) -> Result<Action, ReconcileError> {
    let spec = &resource.spec;
    let status = resource.status.clone().unwrap_or_default();
    let namespace = resource.namespace().unwrap_or_default();
    let goes = spec.deletion_policy == DeletionPolicy::Delete
        && spec.management_policy != ManagementPolicy::Observe
        && status.owned;
    if goes && let Some(target) = while_cluster_is_there(context, &namespace, &spec.cluster_ref.name).await? {
        let target = match target {
            Ok(target) => target,
            Err((_, why)) => return waits(context, api, resource, "DeletionWaits", &why).await,
        };
        let name = name_of(resource);
        let admin = context.admin();
        let found =
            admin.topic(&target, &name).await.map_err(ReconcileError::admin(format!("describe topic {name}")))?;
        // A topic of the same name that was made since is somebody else's.
        let same = |topic: &v1::Topic| status.topic_id.as_ref().is_none_or(|id| *id == topic.id);
        if found.as_ref().is_some_and(same) {
            match admin.delete_topic(&target, &name).await {
                Err(AdminError::Refused { reason, message }) => {
                    return waits(context, api, resource, "DeletionRefused", &format!("{reason}: {message}")).await;
                }
                other => other.map_err(ReconcileError::admin(format!("delete topic {name}")))?,
            }
        }
    }
    context.succeeded(&format!("ChronicleTopic/{namespace}/{}", resource.name_any()));
    match remove_finalizer(api, resource).await {
        Err(ReconcileError::Kube { source, .. }) if is_not_found(&source) => Ok(Action::await_change()),
        other => other.map(|()| Action::await_change()),
    }
}

/// Says why the resource is still there.
async fn waits(
    context: &Context,
    api: &Api<ChronicleTopic>,
    resource: &ChronicleTopic,
    reason: &'static str,
    why: &str,
) -> Result<Action, ReconcileError> {
    let mut status = resource.status.clone().unwrap_or_default();
    let before = status.clone();
    let message = deletion_waits(why);
    let known = condition_of(&before.conditions, ConditionType::Ready).is_some_and(|known| known.reason == reason);
    let generation = resource.meta().generation;
    set_condition(
        &mut status.conditions,
        ConditionType::Ready,
        Some(false),
        reason,
        &message,
        generation,
        context.now(),
    );
    if !known {
        context.event(resource, EventKind::Warning, reason, &message).await;
    }
    if status != before {
        let replacement = ChronicleTopic { status: Some(status), ..resource.clone() };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let written = api.replace_status(&resource.name_any(), &params, &replacement).await;
        written.map_err(ReconcileError::kube("write the status"))?;
    }
    Ok(Action::requeue(UNSETTLED))
}

/// The message of a resource that is to be deleted and cannot be yet.
pub(super) fn deletion_waits(why: &str) -> String {
    format!(
        "not deleted yet: {why}; to let it go and leave what it is about in the cluster, set deletionPolicy to Retain"
    )
}

/// `None`: the cluster is gone or going, so that there is nothing to delete from. The error inside says why it cannot be reached
/// now.
pub(super) async fn while_cluster_is_there(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Option<Result<Target, (&'static str, String)>>, ReconcileError> {
    let clusters: Api<ChronicleCluster> = Api::namespaced(context.client(), namespace);
    let found =
        clusters.get_opt(cluster).await.map_err(ReconcileError::kube(format!("get ChronicleCluster {cluster}")))?;
    if found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()) {
        return Ok(None);
    }
    Ok(Some(reach(context, namespace, cluster).await?.map(|(target, _)| target)))
}

#[cfg(test)]
mod tests;
