//! Compares the replicas of a partition: the same entries must have the same hash everywhere.

use std::collections::BTreeSet;
use std::time::Duration;

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::DigestRange;
use chronicle_proto::internal::group_request::Ask;
use tokio::time::Instant;

use super::Replicas;
use crate::model::VerifiedPartition;

/// Longest wait for a replica to be as far as the leader before it is compared.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(30);

impl Replicas {
    /// Compares the replicas of one partition, on this and on other nodes, from the highest first index to the highest applied
    /// index. `topic`: its name, for the result.
    pub(crate) async fn verify(&self, topic: String, id: LogId) -> VerifiedPartition {
        let cluster = &self.inner.env.cluster;
        let state = cluster.state();
        let placement = cluster.placement(id).unwrap_or_default();
        let mut verified = VerifiedPartition {
            topic,
            partition: id.partition as i32,
            from: 0,
            to: 0,
            replicas: Vec::new(),
            difference: String::new(),
        };
        let mut statuses = Vec::new();
        let mut lagging = Vec::new();
        for node in &placement.voters {
            match self.replica_status(id, *node).await {
                Ok(status) => statuses.push((*node, status)),
                Err(error) => lagging.push((*node, error)),
            }
        }
        // From the highest first index, up to the highest applied index, for which every replica is awaited.
        verified.from = statuses.iter().map(|(_, status)| status.first_index).max().unwrap_or(0);
        verified.to = statuses.iter().map(|(_, status)| status.applied).max().unwrap_or(0);
        let uuid = |node: u64| state.nodes.get(&node).map(|node| node.uuid).unwrap_or_default();
        let range = DigestRange { from: verified.from, to: verified.to };
        for (node, _) in &statuses {
            let digest = self.replica_digest(id, *node, range).await;
            verified.replicas.push((uuid(*node), digest));
        }
        verified.replicas.extend(lagging.into_iter().map(|(node, error)| (uuid(node), Err(error))));
        let digests: BTreeSet<&String> =
            verified.replicas.iter().filter_map(|(_, digest)| digest.as_ref().ok()).collect();
        let failed = verified.replicas.iter().filter(|(_, digest)| digest.is_err()).count();
        verified.difference = match (digests.len(), failed) {
            (0 | 1, 0) => String::new(),
            (0 | 1, failed) => format!("cannot compare {failed} of {} replicas", verified.replicas.len()),
            (different, _) => format!("{different} different contents"),
        };
        verified
    }

    async fn replica_status(&self, id: LogId, node: u64) -> Result<proto::GroupResponse, String> {
        if node == self.inner.env.cluster.node() {
            return self.group_status(id, true).await.map_err(|e| e.to_string());
        }
        self.inner.env.cluster.ask(id, node, Ask::Status(true)).await
    }

    /// Polls until the replica has applied the range, or the timeout expires.
    async fn replica_digest(&self, id: LogId, node: u64, range: DigestRange) -> Result<String, String> {
        let until = Instant::now() + CATCH_UP_TIMEOUT;
        loop {
            let answer = if node == self.inner.env.cluster.node() {
                self.digest(id, range).await
            } else {
                self.inner.env.cluster.ask(id, node, Ask::Digest(range)).await.map(|answer| answer.digest.to_vec())
            };
            match answer {
                Ok(digest) if !digest.is_empty() => {
                    return Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect());
                }
                Ok(_) if Instant::now() >= until => return Err("the replica lags behind".into()),
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => return Err(error),
            }
        }
    }
}
