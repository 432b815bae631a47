//! What other parts of the node need of the broker: internal topics and the partitions behind a name.

use std::sync::Arc;

use super::{Broker, BrokerError, Topic};
use crate::controller::ControllerState;
use crate::partition::Partition;

impl Broker {
    /// What the controller group has agreed on, as far as this node knows.
    pub(crate) fn agreed(&self) -> Arc<ControllerState> {
        self.inner.env.state()
    }

    /// A partition, opened if need be.
    ///
    /// # Errors
    /// What keeps it from opening.
    pub(crate) async fn partition(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, BrokerError> {
        self.open(topic, partition).await
    }

    /// A partition, led by this node: opened and elected if need be.
    ///
    /// # Errors
    /// [`super::Reason::NotLeader`] with the leader's address; what keeps it from opening.
    pub(crate) async fn led_partition(&self, topic: &Topic, partition: i32) -> Result<Arc<Partition>, BrokerError> {
        self.lead(topic, partition).await
    }

    /// Whether the data volume takes another append.
    ///
    /// # Errors
    /// [`super::Reason::DiskFull`].
    pub(crate) fn check_space(&self) -> Result<(), BrokerError> {
        self.inner.disk_space.check(&self.inner.store)
    }
}
