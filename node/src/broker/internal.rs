//! What other parts of the node need of the broker: internal topics and the partitions behind a name.

use std::sync::Arc;

use chronicle_log::LogId;

use super::{Broker, BrokerError, Topic};
use crate::controller::ControllerState;
use crate::partition::{Partition, SlotState};

/// A replica as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Open: what it holds as far as it is committed here.
    Open {
        /// First retained offset.
        earliest: i64,
        /// Offset after the last one.
        next: i64,
    },
    /// Not open; nothing is appended to any replica then.
    Asleep,
    /// Not here, or not in service.
    Elsewhere,
}

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

    /// The replica of a partition on this node as it is; nothing is opened.
    pub(crate) fn peek(&self, topic: &Topic, partition: i32) -> Peek {
        let id = LogId { topic: topic.id, partition: partition as u32 };
        if !self.inner.env.placement(id).is_some_and(|placement| placement.holds(self.inner.env.node())) {
            return Peek::Elsewhere;
        }
        if let Some(partition) = self.open_partition(topic, partition) {
            let next = partition.progress().borrow().next_offset as i64;
            return Peek::Open { earliest: partition.log_start() as i64, next };
        }
        match self.inner.slots.read().get(&id).map(|slot| slot.state()) {
            Some(SlotState::Dormant) | None => Peek::Asleep,
            Some(_) => Peek::Elsewhere,
        }
    }

    /// A partition that is open here. It does not count as used.
    pub(crate) fn open_partition(&self, topic: &Topic, partition: i32) -> Option<Arc<Partition>> {
        let id = LogId { topic: topic.id, partition: partition as u32 };
        match self.inner.slots.read().get(&id)?.state() {
            SlotState::Active(partition) if partition.failure().is_none() => Some(partition),
            _ => None,
        }
    }

    /// Whether this node leads a partition or, while it sleeps, would when it is woken.
    pub(crate) fn would_lead(&self, topic: &Topic, partition: i32) -> bool {
        let id = LogId { topic: topic.id, partition: partition as u32 };
        match self.inner.slots.read().get(&id).map(|slot| slot.state()) {
            Some(SlotState::Active(partition)) => partition.leads_in().is_some(),
            _ => self.inner.env.designated(id) == Some(self.inner.env.node()),
        }
    }

    /// Whether the data volume takes another append.
    ///
    /// # Errors
    /// [`super::Reason::DiskFull`].
    pub(crate) fn check_space(&self) -> Result<(), BrokerError> {
        self.inner.disk_space.check(&self.inner.store)
    }
}
