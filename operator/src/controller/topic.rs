//! Reconciles a ChronicleTopic: creates, alters, adopts, observes or deletes one topic of a cluster.
//!
//! Invariants:
//! - `status.owned` is written before the topic is created, so that an operator that is killed in between still manages the topic.
//! - With the policy `Manage`, a topic that existed before the resource is never altered or deleted.

use std::sync::Arc;

use chronicle_client::v1;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::controller::Action;

use super::child::{self, Blocker, ChildResource, ReadyState, resolve_cluster, resolve_for_deletion};
use super::{Context, ReconcileError};
use crate::admin::AdminError;
use crate::api::{ChronicleTopic, Conditions, DeletionPolicy, Durability, ManagementPolicy, TopicStatus};

/// Reconciles one topic.
///
/// # Errors
/// The failure; [`ReconcileError::retry_delay`] has the delay of the retry.
pub async fn reconcile(resource: Arc<ChronicleTopic>, context: Context) -> Result<Action, ReconcileError> {
    child::reconcile(&*resource, &context).await
}

impl ChildResource for ChronicleTopic {
    type Status = TopicStatus;

    fn status(&self) -> TopicStatus {
        self.status.clone().unwrap_or_default()
    }

    fn with_status(self, status: TopicStatus) -> Self {
        Self { status: Some(status), ..self }
    }

    fn conditions_mut(status: &mut TopicStatus) -> (&mut Conditions, &mut Option<i64>) {
        (&mut status.conditions, &mut status.observed_generation)
    }

    async fn advance(&self, context: &Context, status: &mut TopicStatus) -> Result<ReadyState, ReconcileError> {
        reconcile_topic(context, self, status).await
    }

    async fn finalize(&self, context: &Context) -> Result<Option<Blocker>, ReconcileError> {
        delete(context, self).await
    }
}

fn name_of(resource: &ChronicleTopic) -> String {
    resource.spec.topic_name.clone().unwrap_or_else(|| resource.name_any())
}

async fn reconcile_topic(
    context: &Context,
    resource: &ChronicleTopic,
    status: &mut TopicStatus,
) -> Result<ReadyState, ReconcileError> {
    let spec = &resource.spec;
    let namespace = resource.namespace().unwrap_or_default();
    let (target, _) = match resolve_cluster(context, &namespace, &spec.cluster_ref.name).await? {
        Ok(resolved) => resolved,
        Err((reason, message)) => return Ok(ReadyState::unknown(reason, message)),
    };
    let name = name_of(resource);
    if !status.owned && spec.management_policy != ManagementPolicy::Observe {
        let taken = other_owner(context, resource, &namespace, &name).await?;
        if let Some(other) = taken {
            return Ok(ReadyState::not_ready("Conflict", format!("topic {name} is managed by ChronicleTopic {other}")));
        }
    }
    let admin = context.admin();
    let found = admin.topic(&target, &name).await.map_err(ReconcileError::admin(format!("describe topic {name}")))?;
    status.topic_name = Some(name.clone());
    match (spec.management_policy, found) {
        (ManagementPolicy::Observe, None) => {
            record_topic(status, None);
            Ok(ReadyState::not_ready(
                "TopicMissing",
                format!("topic {name} does not exist, and managementPolicy Observe does not create it"),
            ))
        }
        (ManagementPolicy::Observe, Some(topic)) => {
            status.owned = false;
            record_topic(status, Some(&topic));
            Ok(match drift(resource, &topic) {
                Drift::None => ReadyState::ready("Observed"),
                Drift::Change { what, .. } | Drift::Impossible(what) => ReadyState::not_ready("Drifted", what),
            })
        }
        (_, None) if !status.owned => {
            // Recorded before the topic is created.
            status.owned = true;
            Ok(ReadyState::step_done("Creating"))
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
            record_topic(status, Some(&topic));
            Ok(ReadyState::step_done("Created"))
        }
        (ManagementPolicy::Manage, Some(topic)) if !status.owned => {
            record_topic(status, Some(&topic));
            let rule = "set managementPolicy to Adopt to take it over, or to Observe to only report on it";
            Ok(ReadyState::not_ready(
                "TopicExists",
                format!("topic {name} already exists and is not managed by this resource: {rule}"),
            ))
        }
        (ManagementPolicy::Adopt, Some(topic)) if !status.owned => {
            status.owned = true;
            record_topic(status, Some(&topic));
            Ok(ReadyState::step_done("Adopted"))
        }
        (_, Some(topic)) => {
            record_topic(status, Some(&topic));
            match drift(resource, &topic) {
                Drift::None => Ok(ReadyState::ready("InSync")),
                Drift::Impossible(why) => Ok(ReadyState::not_ready("CannotChange", why)),
                Drift::Change { request, .. } => {
                    let changed = admin.alter_topic(&target, request).await;
                    let topic = changed.map_err(ReconcileError::admin(format!("alter topic {name}")))?;
                    record_topic(status, Some(&topic));
                    Ok(match drift(resource, &topic) {
                        Drift::None => ReadyState::ready("InSync"),
                        Drift::Change { what, .. } | Drift::Impossible(what) => {
                            ReadyState::not_ready("NotApplied", what)
                        }
                    })
                }
            }
        }
    }
}

/// Returns another resource of this namespace that manages the topic.
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

fn record_topic(status: &mut TopicStatus, topic: Option<&v1::Topic>) {
    status.topic_id = topic.map(|topic| topic.id.clone());
    status.partitions = topic.map(|topic| topic.partitions);
    status.replication_factor = topic.map(|topic| topic.replication_factor);
}

/// Returns the settings of the spec. An absent setting is the default.
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

/// Returns how a topic differs from the spec.
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

/// Deletes the topic if this resource manages it and its policy says so. Returns what blocks that.
async fn delete(context: &Context, resource: &ChronicleTopic) -> Result<Option<Blocker>, ReconcileError> {
    let (spec, status) = (&resource.spec, ChildResource::status(resource));
    let namespace = resource.namespace().unwrap_or_default();
    let goes = spec.deletion_policy == DeletionPolicy::Delete
        && spec.management_policy != ManagementPolicy::Observe
        && status.owned;
    if !goes {
        return Ok(None);
    }
    let target = match resolve_for_deletion(context, &namespace, &spec.cluster_ref.name).await? {
        None => return Ok(None),
        Some(Err((_, why))) => return Ok(Some(("DeletionWaits", why))),
        Some(Ok(target)) => target,
    };
    let (admin, name) = (context.admin(), name_of(resource));
    let found = admin.topic(&target, &name).await.map_err(ReconcileError::admin(format!("describe topic {name}")))?;
    // A topic with another UUID was recreated outside this resource.
    let same = |topic: &v1::Topic| status.topic_id.as_ref().is_none_or(|id| *id == topic.id);
    if !found.as_ref().is_some_and(same) {
        return Ok(None);
    }
    match admin.delete_topic(&target, &name).await {
        Err(AdminError::Refused { reason, message }) => Ok(Some(("DeletionRefused", format!("{reason}: {message}")))),
        other => other.map(|()| None).map_err(ReconcileError::admin(format!("delete topic {name}"))),
    }
}

#[cfg(test)]
mod tests;
