//! A person names the replica from which a partition recovers that cannot recover by itself: [`crate::cluster`] has the rules.

use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use futures::future::join_all;

use super::{Broker, ReplicaRecovery};
use crate::cluster::ACTIVE;
use crate::model::{ApiError, Reason, TopicPartition};

impl Broker {
    /// Declares the replica on `source` (UUID or unique name) to be the truth of a partition; the other replicas that can be reached are
    /// set aside and copied from it. With `dry_run`, changes nothing. Returns the replicas as they were before. Needs no leader of the
    /// partition or of the controller group.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when the partition has a leader, or the node is none of its voters; [`Reason::Unavailable`] when the
    /// source does not answer or cannot be the source.
    pub async fn recover(
        &self,
        target: &TopicPartition,
        source: &str,
        dry_run: bool,
    ) -> Result<Vec<ReplicaRecovery>, ApiError> {
        let topic = self.known_topic(target)?;
        let id = LogId { topic: topic.id, partition: target.partition as u32 };
        let state = self.inner.cluster.state();
        let source = state.find_node(source).cloned().map_err(ApiError::from)?;
        let voters = self.inner.cluster.placement(id).unwrap_or_default().voters;
        if !voters.contains(&source.id) {
            return Err(ApiError::invalid("source", &source.name, "must be a voter of the partition"));
        }
        let statuses = join_all(voters.iter().map(|node| self.ask_replica(id, *node, Ask::Status(true)))).await;
        let leader = voters.iter().zip(&statuses).find_map(|(node, status)| {
            let status = status.as_ref().ok()?;
            (status.state == ACTIVE && status.leader == *node).then_some(*node)
        });
        if let Some(leader) = leader {
            let why = format!("partition {target:?}: node {leader} leads it, there is nothing to recover");
            return Err(ApiError::new(Reason::InvalidRequest, why));
        }
        let uuid = |node: u64| state.nodes.get(&node).map(|node| node.uuid).unwrap_or_default();
        let before = voters.iter().zip(statuses).map(|(node, status)| described(uuid(*node), status));
        let mut replicas: Vec<ReplicaRecovery> = before.collect();
        if dry_run {
            return Ok(replicas);
        }
        let declared = self.ask_replica(id, source.id, Ask::DeclareSource(true)).await;
        let declared =
            declared.map_err(|why| ApiError::new(Reason::Unavailable, format!("source {}: {why}", source.name)))?;
        tracing::warn!(
            partition = %id, source = source.name, next_index = declared.next_index,
            "a person has declared the source of the partition: acknowledged records that it does not have are lost"
        );
        for (node, replica) in voters.iter().zip(&mut replicas).filter(|(node, _)| **node != source.id) {
            if replica.error.is_empty()
                && let Err(error) = self.ask_replica(id, *node, Ask::StartOver(true)).await
            {
                replica.error = error;
            }
        }
        Ok(replicas)
    }

    /// Asks the replica on a node, which may be this one.
    async fn ask_replica(&self, id: LogId, node: u64, ask: Ask) -> Result<proto::GroupResponse, String> {
        if node != self.inner.cluster.node() {
            return self.inner.cluster.ask(id, node, ask).await;
        }
        let replicas = &self.inner.replicas;
        let replica = replicas.placed(id).map_err(|error| error.to_string())?;
        let accepted = proto::GroupResponse { accepted: true, ..Default::default() };
        match ask {
            Ask::DeclareSource(_) => {
                let next_index = replica.declare_source().await?;
                Ok(proto::GroupResponse { next_index, ..accepted })
            }
            Ask::StartOver(_) => replica.start_over().await.map(|()| accepted),
            _ => replicas.group_status(id, true).await.map_err(|error| error.to_string()),
        }
    }
}

fn described(node_id: uuid::Uuid, status: Result<proto::GroupResponse, String>) -> ReplicaRecovery {
    let (status, error) = match status {
        Ok(status) => (status, String::new()),
        Err(error) => (proto::GroupResponse::default(), error),
    };
    let held_end = if status.damaged { status.held_end } else { status.next_index };
    ReplicaRecovery {
        node_id,
        damaged: status.damaged,
        next_index: status.next_index,
        held_end,
        state: status.state,
        error,
    }
}
