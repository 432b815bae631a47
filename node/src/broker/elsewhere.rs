//! Reads from another replica what the replica on this node, or the leader's, cannot give because it is damaged.
//!
//! A committed record never changes, so that any replica may return it. `DATA_DAMAGED` is final for a client: it is the
//! answer only when there is no other replica, or every other one answers the same. While another replica may have the
//! record, the answer is `UNAVAILABLE`, and the client tries again.
//!
//! Neighbours: `read.rs` asks for it; `forward.rs` sends and answers the reads.

use std::collections::BTreeSet;
use std::time::Duration;

use chronicle_log::LogId;

use super::Broker;
use crate::model::{ApiError, Fetch, Fetched, PartitionError, Reason, Topic};

impl Broker {
    /// Reads from the other replicas, one after the other, until one has records. `damage`: why they are asked.
    ///
    /// # Errors
    /// `damage` when no other replica can have the record, `Reason::Unavailable` when one may have it.
    pub(super) async fn fetch_elsewhere(
        &self,
        topic: &Topic,
        request: &Fetch,
        damage: ApiError,
    ) -> Result<Fetched, ApiError> {
        let others = self.other_replicas(topic, request.target.partition);
        let mut why = None;
        for node in others {
            match self.fetch_from_replica(node, request).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) if error.reason == Reason::DataDamaged => {}
                Err(error) => why = Some(format!("node {node}: {}", error.message)),
            }
        }
        match why {
            None => Err(damage),
            Some(why) => Err(not_yet(&format!("{}; {why}", damage.message))),
        }
    }

    /// Converts the error of a request that only the leader answers. Starts to repair damage that the request has found; while
    /// other replicas hold the partition, damage is no reason to give up.
    pub(super) fn leader_error(&self, topic: &Topic, number: i32, error: PartitionError) -> ApiError {
        self.inner.replicas.report_damage(log_id(topic, number), &error);
        let damaged = matches!(error, PartitionError::Damaged { .. });
        match damaged && !self.other_replicas(topic, number).is_empty() {
            true => not_yet(&error.to_string()),
            false => self.api_error(error),
        }
    }

    /// Nodes with another replica of a partition: first those that are alive and in service, the preferred leader first.
    fn other_replicas(&self, topic: &Topic, number: i32) -> Vec<u64> {
        let cluster = &self.inner.cluster;
        let id = log_id(topic, number);
        let placement = cluster.placement(id).unwrap_or_default();
        let mut seen = BTreeSet::from([cluster.node()]);
        let all = placement.replicas.into_iter().chain(placement.voters);
        let mut others: Vec<u64> = all.filter(|node| seen.insert(*node)).collect();
        others.sort_by_key(|node| !cluster.serves(*node, id));
        others
    }

    /// Reads what the replica on this node has committed, for another node whose own replica is damaged.
    pub(super) async fn fetch_for_damaged(&self, topic: &Topic, request: &Fetch) -> Result<Fetched, ApiError> {
        let request = Fetch { max_wait: Duration::ZERO, ..request.clone() };
        let fetched = self.fetch_here(topic, &request).await.map_err(|error| self.api_error(error))?;
        match !fetched.has_advanced() {
            true => Err(self.api_error(fetched.at_end())),
            false => Ok(fetched),
        }
    }
}

fn log_id(topic: &Topic, number: i32) -> LogId {
    LogId { topic: topic.id, partition: number as u32 }
}

fn not_yet(why: &str) -> ApiError {
    ApiError::new(Reason::Unavailable, format!("a replica is damaged and is repaired from the others: {why}"))
}
