//! Whether the replica of a partition on this node may be deleted because it was reassigned to another node.
//!
//! The log and the vote of a replica that is still counted on must not be deleted, and the metadata applied on this node may be old:
//! the partition may have moved away and back since. So two confirmed statements are needed:
//!
//! 1. The metadata, confirmed to be current by the leader of the controller group, does not give a replica to this node.
//! 2. The leader of the partition's group, confirmed by a majority, has this node neither as a voter nor as a learner. What the
//!    replica here knows of the members does not tell: one that was removed does not receive its own removal.
//!
//! The leader adds a node again only after that node has said that its replica is open. The caller closes the replica, then asks
//! again, so that nothing it acknowledged can be counted in between.

use chronicle_log::LogId;
use chronicle_proto::internal::group_request::Ask;

use super::environment::Environment;
use super::fill_source::find_leader;

/// Returns whether it is certain that this node's replica of a log is not needed.
pub(super) async fn confirm(env: &Environment, id: LogId) -> bool {
    match unneeded(env, id).await {
        Ok(unneeded) => unneeded,
        Err(error) => {
            tracing::debug!(partition = %id, error, "not certain that a replica was reassigned, keeping it");
            false
        }
    }
}

async fn unneeded(env: &Environment, id: LogId) -> Result<bool, String> {
    env.confirm_metadata().await?;
    let me = env.cluster.node();
    // Without a placement the topic was deleted, which is another matter.
    if env.cluster.placement(id).is_none_or(|placement| placement.holds(me)) {
        return Ok(false);
    }
    let leader = find_leader(env, id).await?;
    env.cluster.ask(id, leader, Ask::ReadIndex(true)).await?;
    // Read after the leadership was confirmed: not older than what was committed then.
    let status = env.cluster.ask(id, leader, Ask::Status(true)).await?;
    if status.leader != leader || status.voters.is_empty() {
        return Err(format!("node {leader} does not lead any more ({})", status.state));
    }
    if status.voters.contains(&me) || status.learners.contains(&me) {
        return Err(format!(
            "the group has this node among its voters {:?} or learners {:?}",
            status.voters, status.learners
        ));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use chronicle_client::tcp_connector;
    use chronicle_log::disk::RealDisk;
    use chronicle_log::{LogConfig, Store, StoreConfig};
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use parking_lot::Mutex;
    use tokio::runtime::Handle;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::super::{Partition, Replicas, members};
    use super::*;
    use crate::cluster::{Cluster, Reports};
    use crate::config::{Config, Live};
    use crate::metadata::{ControllerState, DiskGeneration, Placement};
    use crate::model::{Topic, TopicSettings};
    use crate::peers::{Liveness, LivenessConfig, Me, Peers};
    use crate::raft::LeasePromise;

    const LOG: LogId = LogId { topic: Uuid::from_u128(7), partition: 0 };

    /// Node 1 with the metadata of the past; the controller leader knows what is current.
    struct Lagging {
        cluster: Arc<Cluster>,
        current: Option<Placement>,
        reported: Mutex<Vec<Vec<u64>>>,
    }

    impl Reports for Lagging {
        fn voters(&self, _: LogId, voters: Vec<u64>, _: u64) -> BoxFuture<'_, Result<(), String>> {
            self.reported.lock().push(voters);
            async { Ok(()) }.boxed()
        }

        fn current(&self) -> BoxFuture<'_, Result<(), String>> {
            match &self.current {
                Some(placement) => apply(&self.cluster, placement.clone()),
                None => return async { Err("no leader is known".to_owned()) }.boxed(),
            }
            async { Ok(()) }.boxed()
        }

        fn topic_files_deleted(&self, _: Uuid) -> BoxFuture<'_, Result<(), String>> {
            async { Ok(()) }.boxed()
        }
    }

    fn apply(cluster: &Cluster, placement: Placement) {
        let topic = Topic {
            name: "moved".into(),
            id: LOG.topic,
            partitions: 1,
            replication_factor: 1,
            settings: TopicSettings::default(),
            created_ms: 1,
        };
        let mut state = ControllerState::default();
        state.placements.insert(topic.id, vec![placement]);
        state.topics.insert(topic.name.clone(), topic);
        *cluster.metadata.write() = Arc::new(state);
    }

    fn lagging(dir: &std::path::Path, past: Placement, current: Option<Placement>) -> (Arc<Environment>, Arc<Lagging>) {
        let store = Store::open(Arc::new(RealDisk), dir, StoreConfig::default()).unwrap();
        let second = Duration::from_secs(1);
        let start = DiskGeneration { number: 1, lineage: 1, boot: 1 };
        let config = LivenessConfig { interval: second, suspect_after: 3 * second, start };
        let liveness = Liveness::new(config, None, Handle::current());
        let peers = Peers::new(tcp_connector(), None, Handle::current(), 1 << 20, liveness);
        peers.identify(Me { cluster: Uuid::from_u128(1), node: 1, start });
        let cluster = Arc::new(Cluster::new(store, Handle::current(), peers, Live::new(Arc::new(Config::default()))));
        apply(&cluster, past);
        let env = Arc::new(Environment::new(cluster.clone(), |_| None));
        let reports = Arc::new(Lagging { cluster, current, reported: Mutex::default() });
        assert!(env.reports.set(reports.clone()).is_ok());
        (env, reports)
    }

    /// Lets node 1 reconcile its replica with metadata of the past, which gives it to node 2; returns whether it is there after that.
    async fn survives(current: Option<Placement>) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let (env, _) = lagging(dir.path(), Placement::founded(vec![2]), current);
        let store = env.cluster.store.clone();
        store.open_log(LOG, LogConfig::default()).unwrap().close().unwrap();
        let replicas = Replicas::new(env, CancellationToken::new());
        assert!(!replicas.delete_reassigned(LOG).await, "it is tried again");
        store.list_logs().unwrap() == [LOG]
    }

    #[tokio::test]
    async fn a_replica_that_the_metadata_of_the_past_gives_to_another_node_is_kept() {
        assert!(survives(Some(Placement::founded(vec![1, 2]))).await, "it has come back since");
        assert!(survives(None).await, "what is current is not known");
    }

    #[tokio::test]
    async fn a_replica_is_kept_while_its_group_does_not_confirm_that_it_was_removed() {
        assert!(survives(Some(Placement::founded(vec![2]))).await, "node 2 cannot be asked");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_leader_changes_no_members_towards_a_placement_of_the_past() {
        let dir = tempfile::tempdir().unwrap();
        let past = Placement { replicas: vec![1, 2], ..Placement::founded(vec![1]) };
        let (env, reports) = lagging(dir.path(), past.clone(), Some(Placement::founded(vec![1])));
        let promise = LeasePromise::new(Instant::now() - Duration::from_secs(1));
        let opened = Partition::open(env.clone(), LOG, TopicSettings::default(), past, promise).await;
        let partition = opened.unwrap();
        // Without a look at what is current it would ask node 2, which was a target in the past.
        members::round(&partition).await.unwrap();
        assert_eq!(*reports.reported.lock(), [vec![1]]);
        drop(env);
        partition.close().await;
    }
}
