//! Nodes of the cluster: who serves what, and operations on them.

use futures::stream::BoxStream;
use uuid::Uuid;

use super::{Broker, BrokerError, ClusterStatus, Metadata, OperationView, Reason, TopicPartition, VerifiedPartition};

impl Broker {
    /// Where the partitions of some topics are; no names: of all.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn metadata(&self, _topics: &[String]) -> Result<Metadata, BrokerError> {
        Err(pending())
    }

    /// The cluster at a glance, as this node sees it.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] before the node is part of a cluster.
    pub async fn status(&self) -> Result<ClusterStatus, BrokerError> {
        Err(pending())
    }

    /// Begins to move every replica off a node (UUID or unique name) and to remove it.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no node or several have that name, or the others could not hold the replicas.
    pub async fn decommission(&self, _node: &str) -> Result<OperationView, BrokerError> {
        Err(pending())
    }

    /// Begins to hand over everything that a node leads.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no node or several have that name.
    pub async fn drain(&self, _node: &str) -> Result<OperationView, BrokerError> {
        Err(pending())
    }

    /// Lets a drained node lead again.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when the node is not drained.
    pub async fn undrain(&self, _node: &str) -> Result<OperationView, BrokerError> {
        Err(pending())
    }

    /// Stops an operation; what it has done stays.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`] when no operation of this id is under way.
    pub async fn cancel_operation(&self, _id: u64) -> Result<OperationView, BrokerError> {
        Err(pending())
    }

    /// Hands leadership of a partition (`None`: of the controller group) to a replica (UUID or unique name; empty: the best
    /// one), and answers who leads then.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`], [`Reason::UnknownTopic`], [`Reason::Unavailable`] when the hand-over does not succeed.
    pub async fn transfer_leadership(&self, _target: Option<TopicPartition>, _to: &str) -> Result<Uuid, BrokerError> {
        Err(pending())
    }

    /// Compares the replicas of every partition of a topic (empty: of every topic).
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`].
    pub async fn verify(
        &self,
        _topic: &str,
    ) -> Result<BoxStream<'static, Result<VerifiedPartition, BrokerError>>, BrokerError> {
        Err(pending())
    }
}

fn pending() -> BrokerError {
    BrokerError::new(Reason::Unavailable, "the cluster is not there yet")
}
