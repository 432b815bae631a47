//! Topics: create, list, describe, alter, delete.

use std::collections::HashSet;

use chronicle_log::LogId;
use uuid::Uuid;

use super::{Broker, request_checks};
use crate::cluster::FILLING;
use crate::host::now_ms;
use crate::model::{
    ApiError, NewTopic, PartitionDescription, Reason, SettingsChange, Topic, TopicSettings, unknown_topic,
};
use crate::partition::ReplicaState;

impl Broker {
    /// Creates a topic; `false` when it existed and the request allows that.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::TopicExists`], [`Reason::Overloaded`] at the limit of topics,
    /// [`Reason::DiskFull`]; failures of the controller group.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<(Topic, bool), ApiError> {
        request_checks::not_internal("name", &topic.name)?;
        self.create_any_topic(topic).await
    }

    /// As [`Broker::create_topic`], for internal topics too.
    pub(crate) async fn create_any_topic(&self, topic: NewTopic) -> Result<(Topic, bool), ApiError> {
        request_checks::topic_name(&topic.name)?;
        let (partitions, replication_factor) = request_checks::topic_shape(&topic)?;
        let config = self.config();
        let limits = &config.limits;
        let settings = request_checks::settings(TopicSettings::default(), &topic.settings, limits)?;
        self.check_space()?;
        let created = Topic {
            name: topic.name.clone(),
            id: crate::host::new_uuid(),
            partitions,
            replication_factor,
            settings,
            created_ms: now_ms(),
        };
        let (broker, topics_max) = (self.clone(), limits.topics_max);
        to_the_end(async move {
            match broker.controller()?.create_topic(created, topics_max).await.map_err(ApiError::from) {
                Ok(topic) => Ok((topic, true)),
                Err(error) if error.reason == Reason::TopicExists && topic.if_not_exists => {
                    Ok((broker.topic_named(&topic.name)?, false))
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// All topics that this node knows, by name. Its metadata may lag behind the controller leader's.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is a member of a cluster.
    pub async fn topics(&self) -> Result<Vec<Topic>, ApiError> {
        self.controller()?;
        Ok(self.inner.cluster.state().topics.values().cloned().collect())
    }

    fn topic_named(&self, name: &str) -> Result<Topic, ApiError> {
        self.inner.cluster.state().topics.get(name).cloned().ok_or_else(|| unknown_topic(name))
    }

    /// One topic and its partitions, as this node's replicas have them, which may be behind: [`Broker::offsets`] asks the leader. A
    /// dormant partition is described from the summary that its log stored when it was closed, one that was never used as empty.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`]; [`Reason::Unavailable`] when this node cannot find out whether the topic exists.
    pub async fn describe_topic(&self, name: &str) -> Result<(Topic, Vec<PartitionDescription>), ApiError> {
        // It may be committed and not applied on this node yet.
        self.know([(name, 0)]).await?;
        let topic = self.topic_named(name)?;
        let logs = self.inner.replicas.existing_logs().await;
        let mut partitions = Vec::with_capacity(topic.partitions as usize);
        for partition in 0..topic.partitions {
            partitions.push(self.describe_partition(&topic, partition, &logs).await?);
        }
        Ok((topic, partitions))
    }

    async fn describe_partition(
        &self,
        topic: &Topic,
        partition: i32,
        logs: &HashSet<LogId>,
    ) -> Result<PartitionDescription, ApiError> {
        let metadata = self.inner.cluster.state();
        let id = LogId { topic: topic.id, partition: partition as u32 };
        let placement = self.inner.cluster.placement(id).unwrap_or_default();
        let node = |id: &u64| metadata.nodes.get(id);
        let replicas: Vec<Uuid> = placement.replicas.iter().filter_map(node).map(|node| node.uuid).collect();
        let designated =
            self.inner.cluster.designated(id).and_then(|id| node(&id)).map(|node| node.addresses.data().to_owned());
        let leader = designated.unwrap_or_default();
        let replica = self.inner.replicas.replica(topic, partition).map_err(|error| self.api_error(error))?;
        let state = replica.settled().await;
        if let ReplicaState::Active(open) = state {
            return Ok(PartitionDescription { replicas, ..open.describe() });
        }
        let mut description = PartitionDescription {
            partition,
            earliest: 0,
            next: 0,
            bytes: 0,
            segments: 0,
            term: 0,
            leader: leader.clone(),
            state: match state {
                ReplicaState::Failed { error, .. } => format!("failed: {}", self.api_error(error)),
                ReplicaState::Filling(filling) => filling.describe(),
                _ if !placement.holds(self.inner.cluster.node()) => "elsewhere".into(),
                _ => "dormant".into(),
            },
            replicas,
        };
        match self.store().summary(replica.id()) {
            Ok(Some(summary)) => {
                description.earliest = summary.start_offset as i64;
                description.next = summary.next_offset as i64;
                description.bytes = summary.bytes as i64;
                description.segments = summary.segments as i32;
            }
            // Nothing was ever stored.
            Ok(None) if !logs.contains(&replica.id()) || description.state.starts_with(FILLING) => {}
            // Not closed cleanly: it has to be opened.
            Ok(None) => match self.partition(topic, partition).await {
                Ok(open) => return Ok(PartitionDescription { replicas: description.replicas, ..open.describe() }),
                Err(error) => {
                    description.state = match replica.state() {
                        ReplicaState::Failed { error, .. } => format!("failed: {}", self.api_error(error)),
                        ReplicaState::Filling(filling) => filling.describe(),
                        _ => format!("failed: {error}"),
                    }
                }
            },
            Err(error) => description.state = format!("failed: {}", self.api_error(error.into())),
        }
        Ok(description)
    }

    /// Changes settings; grows the number of partitions (0: unchanged).
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`], [`Reason::InvalidRequest`]; failures of the controller group.
    pub async fn alter_topic(&self, name: &str, partitions: i32, change: SettingsChange) -> Result<Topic, ApiError> {
        request_checks::not_internal("name", name)?;
        let (broker, name) = (self.clone(), name.to_owned());
        to_the_end(async move {
            let _one = broker.inner.changing_topics.lock().await;
            broker.know([(name.as_str(), 0)]).await?;
            let before = broker.topic_named(&name)?;
            let mut topic = before.clone();
            if partitions != 0 {
                request_checks::partition_count(partitions)?;
                topic.partitions = partitions;
            }
            topic.settings = request_checks::settings(topic.settings, &change, &broker.config().limits)?;
            let topic = broker.controller()?.alter_topic(topic).await?;
            if topic.settings != before.settings {
                // Open partitions still use the old settings.
                broker.inner.replicas.restart_topic(topic.id).await;
            }
            Ok(topic)
        })
        .await
    }

    /// Deletes a topic and its data.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`]; failures of the controller group.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ApiError> {
        request_checks::not_internal("name", name)?;
        let (broker, name) = (self.clone(), name.to_owned());
        to_the_end(async move {
            let _one = broker.inner.changing_topics.lock().await;
            let topic = broker.controller()?.delete_topic(&name).await?;
            broker.inner.replicas.delete_topic_files(topic.id).await;
            Ok(())
        })
        .await
    }
}

/// Runs a change of several steps to completion even when the client disconnects.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let interrupted =
        |error| ApiError::unknown(&ApiError::new(Reason::Internal, format!("the change was interrupted: {error}")));
    tokio::spawn(change).await.map_err(interrupted)?
}
