//! Opens and reads logs on threads for blocking calls, not on those of the API and of consensus.

use std::sync::Arc;

use chronicle_log::{Durability, Log, LogConfig, LogError, LogId};

use super::environment::Environment;
use crate::model::{PartitionError, TopicDurability, TopicSettings};

/// Opens a log with a topic's settings.
pub(super) async fn open_log(
    env: &Environment,
    id: LogId,
    settings: &TopicSettings,
) -> Result<Arc<Log>, PartitionError> {
    let config = log_config(settings);
    let store = env.cluster.store.clone();
    crate::host::blocking(move || store.open_log(id, config))
        .await
        .map_err(|e| PartitionError::Internal(format!("partition {id}: open log: {e}")))?
        .map_err(PartitionError::from)
}

/// Runs a read that may wait for the disk on a thread for blocking calls.
pub(super) async fn on_disk<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, PartitionError> {
    crate::host::blocking(read)
        .await
        .map_err(|e| PartitionError::Internal(format!("read: {e}")))?
        .map_err(PartitionError::from)
}

fn log_config(settings: &TopicSettings) -> LogConfig {
    LogConfig {
        // The leader ends segments at their size, by an entry (`segment_ends.rs`). This is what the log does without one.
        segment_bytes: (settings.segment_bytes.max(0) as u64).saturating_mul(2),
        durability: match settings.durability {
            TopicDurability::Fsync => Durability::Fsync,
            TopicDurability::Memory => Durability::Memory {
                flush_interval: std::time::Duration::from_millis(settings.flush_interval_ms.max(1) as u64),
            },
        },
    }
}
