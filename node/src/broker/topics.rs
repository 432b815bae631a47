//! Topics: create, list, describe, alter, delete; and who serves them.

use std::collections::HashSet;
use std::sync::Arc;

use chronicle_log::LogId;
use uuid::Uuid;

use super::{
    Broker, BrokerError, NewTopic, PartitionDescription, Reason, SettingsChange, Topic, TopicSettings, validate,
};
use crate::controller::unknown_topic;
use crate::partition::{Slot, SlotState, log_error};

impl Broker {
    /// Creates a topic; `false` when it was there and the request allows it.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::TopicExists`], [`Reason::Overloaded`] at the limit of topics,
    /// [`Reason::DiskFull`]; failures of the controller group.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<(Topic, bool), BrokerError> {
        validate::not_internal("name", &topic.name)?;
        self.create_any_topic(topic).await
    }

    /// As [`Broker::create_topic`], for internal topics too.
    pub(crate) async fn create_any_topic(&self, topic: NewTopic) -> Result<(Topic, bool), BrokerError> {
        validate::topic_name(&topic.name)?;
        let (partitions, replication_factor) = validate::topic_shape(&topic)?;
        let config = self.config();
        let limits = &config.limits;
        let settings = validate::settings(TopicSettings::default(), &topic.settings, limits)?;
        self.inner.disk_space.check(&self.inner.store)?;
        let created = Topic {
            name: topic.name.clone(),
            id: crate::host::new_uuid(),
            partitions,
            replication_factor,
            settings,
            created_ms: super::now_ms(),
        };
        let (broker, topics_max) = (self.clone(), limits.topics_max);
        to_the_end(async move {
            match broker.controller()?.create_topic(created, topics_max).await {
                Ok(topic) => Ok((topic, true)),
                Err(error) if error.reason == Reason::TopicExists && topic.if_not_exists => {
                    Ok((broker.topic_named(&topic.name)?, false))
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn topics(&self) -> Result<Vec<Topic>, BrokerError> {
        self.controller()?;
        Ok(self.inner.env.state().topics.values().cloned().collect())
    }

    fn topic_named(&self, name: &str) -> Result<Topic, BrokerError> {
        self.inner.env.state().topics.get(name).cloned().ok_or_else(|| unknown_topic(name))
    }

    /// Logs that have files in the data directory.
    pub(super) async fn existing_logs(&self) -> HashSet<LogId> {
        let store = self.inner.store.clone();
        match crate::host::blocking(move || store.list_logs()).await {
            Ok(Ok(logs)) => logs.into_iter().collect(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the data directory cannot be listed");
                HashSet::new()
            }
            Err(error) => {
                tracing::error!(%error, "listing the data directory panicked");
                HashSet::new()
            }
        }
    }

    /// One topic and its partitions. A partition that sleeps is described from what its log said when it closed, one that
    /// was never used as empty.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`].
    pub async fn describe_topic(&self, name: &str) -> Result<(Topic, Vec<PartitionDescription>), BrokerError> {
        if self.topic_named(name).is_err() && !self.alone() {
            // It may have been agreed a moment ago.
            let _ = self.controller()?.sync().await;
        }
        let topic = self.topic_named(name)?;
        let logs = self.existing_logs().await;
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
    ) -> Result<PartitionDescription, BrokerError> {
        let agreed = self.inner.env.state();
        let id = LogId { topic: topic.id, partition: partition as u32 };
        let placement = self.inner.env.placement(id).unwrap_or_default();
        let node = |id: &u64| agreed.nodes.get(id);
        let replicas: Vec<Uuid> = placement.replicas.iter().filter_map(node).map(|node| node.uuid).collect();
        let designated = self.inner.env.designated(id).and_then(|id| node(&id)).map(|node| node.address.clone());
        let leader = designated.unwrap_or_default();
        let slot = self.slot(topic, partition)?;
        let state = slot.settled().await;
        if let SlotState::Active(open) = state {
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
                SlotState::Failed { error, .. } => format!("failed: {error}"),
                SlotState::Filling(_) => "filling".into(),
                _ if !placement.holds(self.inner.env.node()) => "elsewhere".into(),
                _ => "dormant".into(),
            },
            replicas,
        };
        match self.inner.store.summary(slot.id()) {
            Ok(Some(summary)) => {
                description.earliest = summary.start_offset as i64;
                description.next = summary.next_offset as i64;
                description.bytes = summary.bytes as i64;
                description.segments = summary.segments as i32;
            }
            // Nothing was ever stored.
            Ok(None) if !logs.contains(&slot.id()) || description.state == "filling" => {}
            // Not closed cleanly: opening it tells.
            Ok(None) => match self.open(topic, partition).await {
                Ok(open) => return Ok(PartitionDescription { replicas: description.replicas, ..open.describe() }),
                Err(error) => description.state = format!("failed: {error}"),
            },
            Err(error) => description.state = format!("failed: {}", log_error(&error)),
        }
        Ok(description)
    }

    /// Changes settings; grows the number of partitions (0: unchanged).
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`], [`Reason::InvalidRequest`]; failures of the controller group.
    pub async fn alter_topic(&self, name: &str, partitions: i32, change: SettingsChange) -> Result<Topic, BrokerError> {
        validate::not_internal("name", name)?;
        let (broker, name) = (self.clone(), name.to_owned());
        to_the_end(async move {
            let _one = broker.inner.changing_topics.lock().await;
            let before = broker.topic_named(&name)?;
            let mut topic = before.clone();
            if partitions != 0 {
                validate::partition_count(partitions)?;
                topic.partitions = partitions;
            }
            topic.settings = validate::settings(topic.settings, &change, &broker.config().limits)?;
            let topic = broker.controller()?.alter_topic(topic).await?;
            if topic.settings != before.settings {
                // Open partitions carry the old settings.
                let slots: Vec<Arc<Slot>> = broker.slots_of(topic.id);
                for slot in slots {
                    slot.restart().await;
                }
            }
            Ok(topic)
        })
        .await
    }

    fn slots_of(&self, topic: Uuid) -> Vec<Arc<Slot>> {
        self.inner.slots.read().values().filter(|slot| slot.id().topic == topic).cloned().collect()
    }

    /// Deletes a topic and its data.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`]; failures of the controller group.
    pub async fn delete_topic(&self, name: &str) -> Result<(), BrokerError> {
        validate::not_internal("name", name)?;
        let (broker, name) = (self.clone(), name.to_owned());
        to_the_end(async move {
            let _one = broker.inner.changing_topics.lock().await;
            let topic = broker.controller()?.delete_topic(&name).await?;
            broker.delete_files(topic.id).await;
            Ok(())
        })
        .await
    }

    /// Deletes this node's files of a topic that the controller has dropped. What fails is tried again later.
    pub(super) async fn delete_files(&self, id: Uuid) {
        for slot in self.slots_of(id) {
            slot.close().await;
            self.inner.slots.write().remove(&slot.id());
        }
        let mut complete = true;
        for log in self.existing_logs().await.into_iter().filter(|log| log.topic == id) {
            let store = self.inner.store.clone();
            match crate::host::blocking(move || store.delete_log(log)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    complete = false;
                    tracing::warn!(log = %log, %error, "files of a deleted topic stay for now");
                }
                Err(error) => {
                    complete = false;
                    tracing::error!(log = %log, %error, "deleting a log panicked");
                }
            }
        }
        let Some(controller) = self.inner.env.controller.get() else { return };
        if complete && let Err(error) = controller.forget(id).await {
            tracing::warn!(topic = %id, %error, "the deletion is noted later");
        }
    }
}

/// Runs a change of several steps to its end even when the client that asked for it goes away.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, BrokerError>> + Send + 'static,
) -> Result<T, BrokerError> {
    let interrupted = |error| {
        BrokerError::unknown(&BrokerError::new(Reason::Internal, format!("the change was interrupted: {error}")))
    };
    tokio::spawn(change).await.map_err(interrupted)?
}
