//! Access control for the broker: the permissions that each call requires, and the quotas that it uses. Entry point for all listeners.
//!
//! Each method of [`ForCaller`] charges the caller's quotas, checks with the [`Authorizer`] that the caller has the required
//! permissions, and then calls the method of the same name of [`Broker`], which does no access control: the node itself uses that
//! one (for its groups, and for requests of peers, which the receiving peer has already checked).
//!
//! Invariants:
//! - Permissions are checked before any lookup, so that a denial does not reveal what exists.
//! - A read is checked again when it ends: a caller that lost the permission during the wait receives no records.
//! - Every change that goes through here is in the audit trail.

use std::collections::BTreeMap;

use futures::stream::BoxStream;
use uuid::Uuid;

use super::read::DEFAULT_FETCH_BYTES;
use super::{
    Authorizer, Broker, ClusterStatus, Metadata, NodeDescription, OperationProgress, PendingProduce, ReplicaRecovery,
    Route,
};
use crate::controller::unexpected;
use crate::metadata::{CommandOutcome, ControllerCommand};
use crate::model::{
    ApiError, Fetch, Fetched, NewTopic, Offsets, PartitionDescription, Produce, ProducePayload, Produced, Reason,
    SettingsChange, Topic, TopicPartition, VerifiedPartition, Want, unknown_topic,
};
use crate::security::{AclFilter, AclRule, Action, Caller, Metered, Quota, ResourceKind, acl};

/// Maximum number of rules or filters in one request.
const RULES_PER_CALL_MAX: usize = 500;
/// Maximum size of the principals and names of one request's rules, in bytes.
const RULES_BYTES_PER_CALL_MAX: usize = 512 << 10;

/// The broker, with the permissions and quotas of one caller. See the module.
#[derive(Clone, Copy)]
pub struct ForCaller<'a> {
    broker: &'a Broker,
    caller: &'a Caller,
}

impl Broker {
    /// The broker, with the permissions and quotas of this caller.
    pub fn for_caller<'a>(&'a self, caller: &'a Caller) -> ForCaller<'a> {
        ForCaller { broker: self, caller }
    }
}

/// Size of a payload in bytes, for quotas.
fn payload_bytes(payload: &ProducePayload) -> u64 {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let bytes = match payload {
        ProducePayload::Batch(batch) => batch.len(),
        ProducePayload::Records { records, .. } => records
            .iter()
            .map(|record| {
                let headers = record.headers.iter().map(|(name, value)| name.len() + length(value)).sum::<usize>();
                length(&record.key) + length(&record.value) + headers
            })
            .sum(),
    };
    bytes as u64
}

impl ForCaller<'_> {
    fn authorizer(&self) -> &Authorizer {
        self.broker.authorizer()
    }

    /// Charges one request without payload.
    async fn request(&self) -> Result<(), ApiError> {
        self.authorizer().admit(self.caller, &[(Metered::Requests, 1)]).await
    }

    fn topic(&self, action: Action, name: &str) -> Result<(), ApiError> {
        self.authorizer().topic(self.caller, action, name)
    }

    /// Writes a change and its outcome to the audit trail.
    fn changed<T>(
        &self,
        change: &'static str,
        name: &str,
        details: &str,
        result: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.authorizer().changed(self.caller, change, name, details, &result);
        result
    }

    async fn may_append(&self, request: &Produce) -> Result<(), ApiError> {
        let amounts = [(Metered::Requests, 1), (Metered::BytesIn, payload_bytes(&request.payload))];
        self.authorizer().admit(self.caller, &amounts).await?;
        self.topic(Action::Write, &request.target.topic)
    }

    /// As [`Broker::submit`]. Requires: write the topic.
    ///
    /// # Errors
    /// As [`Broker::submit`]; errors of the [`Authorizer`], and [`Reason::Overloaded`] over quota, in this and all other methods.
    pub async fn submit(&self, request: Produce) -> Result<PendingProduce, ApiError> {
        self.may_append(&request).await?;
        self.broker.submit(request).await
    }

    /// As [`Broker::produce`]. Requires: write the topic.
    ///
    /// # Errors
    /// As [`Broker::produce`].
    pub async fn produce(&self, request: Produce, route: Route) -> Result<Produced, ApiError> {
        self.may_append(&request).await?;
        // Boxed here and below: otherwise the combined future of listener, broker and partition is too large.
        Box::pin(self.broker.produce(request, route)).await
    }

    /// As [`Broker::init_producer`]. Requires: write at least one topic.
    ///
    /// # Errors
    /// As [`Broker::init_producer`].
    pub async fn init_producer(&self) -> Result<(i64, i16), ApiError> {
        self.request().await?;
        self.authorizer().some_topic(self.caller, Action::Write)?;
        self.broker.init_producer().await
    }

    async fn may_read(&self, request: &mut Fetch) -> Result<(), ApiError> {
        self.authorizer().admit(self.caller, &[(Metered::Requests, 1), (Metered::BytesOut, 0)]).await?;
        request.max_bytes = self.within_rate(request.max_bytes);
        self.topic(Action::Read, &request.target.topic)
    }

    /// At most the bytes of one second of the caller's quota in one read: the next request waits while the quota is overdrawn.
    fn within_rate(&self, max_bytes: usize) -> usize {
        match self.authorizer().quota(self.caller).bytes_out {
            0 => max_bytes,
            rate => {
                let asked = if max_bytes == 0 { DEFAULT_FETCH_BYTES } else { max_bytes };
                asked.min(usize::try_from(rate).unwrap_or(usize::MAX))
            }
        }
    }

    fn read(&self, topic: &str, fetched: &Fetched) -> Result<(), ApiError> {
        self.topic(Action::Read, topic)?;
        let bytes = fetched.batches.iter().map(|batch| batch.len() as u64).sum();
        self.authorizer().charge(self.caller, Metered::BytesOut, bytes);
        Ok(())
    }

    /// As [`Broker::fetch`]. Requires: read the topic.
    ///
    /// # Errors
    /// As [`Broker::fetch`].
    pub async fn fetch(&self, mut request: Fetch, route: Route) -> Result<Fetched, ApiError> {
        self.may_read(&mut request).await?;
        let topic = request.target.topic.clone();
        let fetched = Box::pin(self.broker.fetch(request, route)).await?;
        self.read(&topic, &fetched).map(|()| fetched)
    }

    /// As [`Broker::read_now`]: one request, whatever the number of partitions. Requires: read each topic; a want without that
    /// permission gets its denial as its answer.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] over quota.
    pub async fn read_now(&self, wants: &[Want], max_bytes: usize) -> Result<Vec<Result<Fetched, ApiError>>, ApiError> {
        self.authorizer().admit(self.caller, &[(Metered::Requests, 1), (Metered::BytesOut, 0)]).await?;
        let max_bytes = self.within_rate(max_bytes);
        let allowed: Vec<Want> =
            wants.iter().filter(|want| self.topic(Action::Read, &want.target.topic).is_ok()).cloned().collect();
        let mut read = Box::pin(self.broker.read_now(&allowed, max_bytes)).await.into_iter();
        let mut allowed = allowed.into_iter().peekable();
        let answers = wants.iter().map(|want| {
            let answer = allowed.next_if(|next| next == want).and_then(|_| read.next());
            // Judged again: the right may have been lost meanwhile.
            self.topic(Action::Read, &want.target.topic)?;
            let fetched = answer.unwrap_or_else(|| Err(unknown_topic(&want.target.topic)))?;
            let bytes = fetched.batches.iter().map(|batch| batch.len() as u64).sum();
            self.authorizer().charge(self.caller, Metered::BytesOut, bytes);
            Ok(fetched)
        });
        Ok(answers.collect())
    }

    /// As [`Broker::offsets`]. Requires: describe the topic.
    ///
    /// # Errors
    /// As [`Broker::offsets`].
    pub async fn offsets(
        &self,
        target: &TopicPartition,
        time_ms: Option<i64>,
        route: Route,
    ) -> Result<Offsets, ApiError> {
        self.request().await?;
        self.topic(Action::Describe, &target.topic)?;
        self.broker.offsets(target, time_ms, route).await
    }

    /// As [`Broker::create_topic`]. Requires: create the topic, or create on the cluster.
    ///
    /// # Errors
    /// As [`Broker::create_topic`].
    pub async fn create_topic(&self, topic: NewTopic) -> Result<(Topic, bool), ApiError> {
        self.request().await?;
        self.authorizer().create(self.caller, &topic.name)?;
        let name = topic.name.clone();
        let details = format!("partitions {}, replicas {}", topic.partitions, topic.replication_factor);
        let (topic, created) = self.changed("create-topic", &name, &details, self.broker.create_topic(topic).await)?;
        // A caller that may create the topic may not be allowed to describe the existing one.
        if !created && !self.authorizer().may(self.caller, Action::Describe, ResourceKind::Topic, &name) {
            return Err(ApiError::new(Reason::TopicExists, format!("topic {name:?}: already exists")));
        }
        Ok((topic, created))
    }

    /// As [`Broker::topics`], only topics that the caller may describe.
    ///
    /// # Errors
    /// As [`Broker::topics`].
    pub async fn topics(&self) -> Result<Vec<Topic>, ApiError> {
        self.request().await?;
        let visible = self.authorizer().describable(self.caller, ResourceKind::Topic);
        let mut topics = self.broker.topics().await?;
        topics.retain(|topic| visible(&topic.name));
        Ok(topics)
    }

    /// As [`Broker::describe_topic`]. Requires: describe the topic.
    ///
    /// # Errors
    /// As [`Broker::describe_topic`].
    pub async fn describe_topic(&self, name: &str) -> Result<(Topic, Vec<PartitionDescription>), ApiError> {
        self.request().await?;
        self.topic(Action::Describe, name)?;
        self.broker.describe_topic(name).await
    }

    /// As [`Broker::alter_topic`]. Requires: alter the topic.
    ///
    /// # Errors
    /// As [`Broker::alter_topic`].
    pub async fn alter_topic(&self, name: &str, partitions: i32, change: SettingsChange) -> Result<Topic, ApiError> {
        self.request().await?;
        self.topic(Action::Alter, name)?;
        let details = format!("partitions {partitions}, {change:?}");
        self.changed("alter-topic", name, &details, self.broker.alter_topic(name, partitions, change).await)
    }

    /// As [`Broker::delete_topic`]. Requires: delete the topic.
    ///
    /// # Errors
    /// As [`Broker::delete_topic`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), ApiError> {
        self.request().await?;
        self.topic(Action::Delete, name)?;
        self.changed("delete-topic", name, "", self.broker.delete_topic(name).await)
    }

    /// As [`Broker::servers`]. Requires: at least one permission.
    ///
    /// # Errors
    /// As [`Broker::servers`].
    pub async fn servers(&self) -> Result<(Vec<NodeDescription>, Uuid), ApiError> {
        self.request().await?;
        self.authorizer().anything(self.caller)?;
        self.broker.servers().await
    }

    /// As [`Broker::metadata`]; topics that the caller may not describe are reported as unknown. Requires: at least one permission.
    ///
    /// # Errors
    /// As [`Broker::metadata`].
    pub async fn metadata(&self, topics: &[String]) -> Result<Metadata, ApiError> {
        self.request().await?;
        if self.authorizer().is_unrestricted(self.caller) {
            return self.broker.metadata(topics).await;
        }
        self.authorizer().anything(self.caller)?;
        let visible = self.authorizer().describable(self.caller, ResourceKind::Topic);
        let (shown, hidden): (Vec<String>, Vec<String>) = match topics {
            [] => (
                self.broker.topics().await?.into_iter().map(|topic| topic.name).filter(|name| visible(name)).collect(),
                vec![],
            ),
            named => named.iter().cloned().partition(|name| visible(name)),
        };
        // An empty list means all topics: without visible topics, the broker must not be called with one.
        let mut metadata = match shown.is_empty() {
            false => self.broker.metadata(&shown).await?,
            true => {
                let (servers, cluster_id) = self.broker.servers().await?;
                Metadata { topics: Vec::new(), servers, cluster_id, unknown: Vec::new() }
            }
        };
        metadata.unknown.extend(hidden);
        Ok(metadata)
    }

    /// As [`Broker::status`]. Requires: describe the cluster.
    ///
    /// # Errors
    /// As [`Broker::status`].
    pub async fn status(&self) -> Result<ClusterStatus, ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Describe)?;
        self.broker.status().await
    }

    async fn administer(&self) -> Result<(), ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Admin)
    }

    /// Checks that the caller may read this node's log filter. Requires: describe the cluster.
    ///
    /// # Errors
    /// Only those of [`ForCaller`].
    pub async fn may_see_log_filter(&self) -> Result<(), ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Describe)
    }

    /// Checks that the caller may read the state and the log of this node. Requires: admin on the cluster.
    ///
    /// # Errors
    /// Only those of [`ForCaller`].
    pub async fn may_diagnose(&self) -> Result<(), ApiError> {
        self.administer().await
    }

    /// Changes this node's log filter, by calling `change`. Requires: admin on the cluster.
    ///
    /// # Errors
    /// Those of `change`.
    pub async fn set_log_filter<T>(
        &self,
        filter: &str,
        change: impl FnOnce() -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.administer().await?;
        self.changed("set-log-filter", filter, "", change())
    }

    /// As [`Broker::decommission`]. Requires: admin on the cluster.
    ///
    /// # Errors
    /// As [`Broker::decommission`].
    pub async fn decommission(&self, node: &str) -> Result<OperationProgress, ApiError> {
        self.administer().await?;
        self.changed("decommission", node, "", self.broker.decommission(node).await)
    }

    /// As [`Broker::drain`]. Requires: admin on the cluster.
    ///
    /// # Errors
    /// As [`Broker::drain`].
    pub async fn drain(&self, node: &str) -> Result<OperationProgress, ApiError> {
        self.administer().await?;
        self.changed("drain", node, "", self.broker.drain(node).await)
    }

    /// As [`Broker::undrain`]. Requires: admin on the cluster.
    ///
    /// # Errors
    /// As [`Broker::undrain`].
    pub async fn undrain(&self, node: &str) -> Result<OperationProgress, ApiError> {
        self.administer().await?;
        self.changed("undrain", node, "", self.broker.undrain(node).await)
    }

    /// As [`Broker::cancel_operation`]. Requires: admin on the cluster.
    ///
    /// # Errors
    /// As [`Broker::cancel_operation`].
    pub async fn cancel_operation(&self, id: u64) -> Result<OperationProgress, ApiError> {
        self.administer().await?;
        self.changed("cancel-operation", &id.to_string(), "", self.broker.cancel_operation(id).await)
    }

    /// As [`Broker::transfer_leadership`]. Requires: admin on the cluster.
    ///
    /// # Errors
    /// As [`Broker::transfer_leadership`].
    pub async fn transfer_leadership(&self, target: Option<TopicPartition>, to: &str) -> Result<Uuid, ApiError> {
        self.administer().await?;
        let what = target
            .as_ref()
            .map_or_else(|| "controller".to_owned(), |target| format!("{}/{}", target.topic, target.partition));
        let details = format!("to {to:?}");
        self.changed("transfer-leadership", &what, &details, self.broker.transfer_leadership(target, to).await)
    }

    /// As [`Broker::recover`]. Requires: admin on the cluster.
    ///
    /// # Errors
    /// As [`Broker::recover`].
    pub async fn recover(
        &self,
        target: TopicPartition,
        source: &str,
        dry_run: bool,
    ) -> Result<Vec<ReplicaRecovery>, ApiError> {
        self.administer().await?;
        let recovered = Box::pin(self.broker.recover(&target, source, dry_run)).await;
        if dry_run {
            return recovered;
        }
        let what = format!("{}/{}", target.topic, target.partition);
        self.changed("recover", &what, &format!("source {source:?}"), recovered)
    }

    /// As [`Broker::verify`]. Requires: admin on the cluster.
    ///
    /// # Errors
    /// As [`Broker::verify`].
    pub async fn verify(
        &self,
        topic: &str,
    ) -> Result<BoxStream<'static, Result<VerifiedPartition, ApiError>>, ApiError> {
        self.administer().await?;
        self.broker.verify(topic).await
    }

    /// Adds rules, all or none; returns those that did not exist. They are in effect on this node when this returns, on
    /// other nodes once these have applied the change. Requires: alter the cluster.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`]; [`Reason::Overloaded`] at the limits of rules; failures of the controller group.
    pub async fn create_acls(&self, rules: Vec<AclRule>) -> Result<Vec<AclRule>, ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Alter)?;
        check_number("rules", rules.len())?;
        let mut bytes = 0;
        for (number, rule) in rules.iter().enumerate() {
            rule.validate()
                .map_err(|invalid| ApiError::new(Reason::InvalidRequest, format!("rules[{number}].{invalid}")))?;
            bytes += rule.principal.len() + rule.name.len();
        }
        if bytes > RULES_BYTES_PER_CALL_MAX {
            let rule =
                format!("principals and names of one request must have at most {RULES_BYTES_PER_CALL_MAX} bytes");
            return Err(ApiError::invalid("rules", format!("{bytes} bytes"), &rule));
        }
        let created = self.acls(&ControllerCommand::CreateAcls { rules }).await;
        self.audit_rules("create-acl", created)
    }

    /// Deletes the rules that match any of the filters; returns them. Requires: alter the cluster.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`]; failures of the controller group.
    pub async fn delete_acls(&self, filters: Vec<AclFilter>) -> Result<Vec<AclRule>, ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Alter)?;
        check_number("filters", filters.len())?;
        let deleted = self.acls(&ControllerCommand::DeleteAcls { filters }).await;
        self.audit_rules("delete-acl", deleted)
    }

    async fn acls(&self, command: &ControllerCommand) -> Result<Vec<AclRule>, ApiError> {
        match self.broker.controller()?.command(command).await? {
            CommandOutcome::Acls(rules) => Ok(rules),
            other => Err(unexpected(other).into()),
        }
    }

    /// Writes one audit line for each rule, so that a search for a principal or a name finds it.
    fn audit_rules(
        &self,
        change: &'static str,
        result: Result<Vec<AclRule>, ApiError>,
    ) -> Result<Vec<AclRule>, ApiError> {
        match &result {
            Ok(rules) => {
                for rule in rules {
                    self.authorizer().changed(self.caller, change, &rule.name, &rule.to_string(), &result);
                }
            }
            Err(_) => self.authorizer().changed(self.caller, change, "", "", &result),
        }
        result
    }

    /// The rules that match a filter, in order. Requires: describe the cluster.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is a member of a cluster.
    pub async fn list_acls(&self, filter: &AclFilter) -> Result<Vec<AclRule>, ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Describe)?;
        self.broker.controller()?;
        let state = self.broker.cluster().state();
        Ok(state.access.rules.iter().filter(|rule| filter.matches(rule)).cloned().collect())
    }

    /// Sets the quota of a principal; `None`: the default quota, of principals without their own. In effect when rules would be, see
    /// [`ForCaller::create_acls`]. Requires: alter the cluster.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`]; [`Reason::Overloaded`] at the limit of quotas; failures of the controller group.
    pub async fn set_quota(&self, principal: Option<String>, quota: Quota) -> Result<(), ApiError> {
        if quota.is_unlimited() {
            self.request().await?;
            self.authorizer().cluster(self.caller, Action::Alter)?;
            let rule = "at least one rate must be more than 0: to remove the limits, delete the quota";
            return Err(ApiError::invalid("quota", "0", rule));
        }
        self.change_quota(principal, Some(quota)).await
    }

    /// Removes the quota of a principal; `None`: the default one. Requires: alter the cluster.
    ///
    /// # Errors
    /// As [`ForCaller::set_quota`].
    pub async fn delete_quota(&self, principal: Option<String>) -> Result<(), ApiError> {
        self.change_quota(principal, None).await
    }

    async fn change_quota(&self, principal: Option<String>, quota: Option<Quota>) -> Result<(), ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Alter)?;
        if let Some(principal) = &principal {
            acl::check_principal(principal)
                .map_err(|invalid| ApiError::new(Reason::InvalidRequest, invalid.to_string()))?;
        }
        let name = principal.clone().unwrap_or_else(|| "(default)".to_owned());
        let (change, details) = match &quota {
            Some(quota) => ("set-quota", format!("{quota:?}")),
            None => ("delete-quota", String::new()),
        };
        let command = ControllerCommand::SetQuota { principal, quota };
        let done = match self.broker.controller()?.command_again(&command).await {
            Ok(CommandOutcome::Done(_)) => Ok(()),
            Ok(other) => Err(unexpected(other).into()),
            Err(error) => Err(error.into()),
        };
        self.changed(change, &name, &details, done)
    }

    /// The default quota, and those of principals. Requires: describe the cluster.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is a member of a cluster.
    pub async fn list_quotas(&self) -> Result<(Option<Quota>, BTreeMap<String, Quota>), ApiError> {
        self.request().await?;
        self.authorizer().cluster(self.caller, Action::Describe)?;
        self.broker.controller()?;
        let state = self.broker.cluster().state();
        Ok((state.access.default_quota, state.access.quotas.clone()))
    }
}

fn check_number(field: &str, number: usize) -> Result<(), ApiError> {
    match number {
        1..=RULES_PER_CALL_MAX => Ok(()),
        _ => Err(ApiError::invalid(field, number, &format!("must be 1 to {RULES_PER_CALL_MAX} in one request"))),
    }
}
