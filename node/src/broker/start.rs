//! Starting and stopping a node's core, and the two tasks that run in between.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chronicle_log::disk::{Disk, RealDisk};
use chronicle_log::{Barrier, LogId, LogSummary, Store, StoreConfig};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Broker, BrokerError, DiskSpace, Inner, NewTopic, Reason, Topic, TopicSettings};
use crate::config::{BarrierKind, Config, StorageConfig};
use crate::controller::Controller;
use crate::partition::{Environment, Slot, SlotState, log_error};
use crate::raft::Member;

/// Raft id of the first node of a cluster.
const FIRST_NODE: u64 = 1;

impl Broker {
    /// Opens the data directory of `config`, starts the controller group and creates the default topic.
    ///
    /// # Errors
    /// Everything that keeps the data directory from opening (in use, newer format, read-only, damaged, full), with a
    /// message that names it.
    pub async fn start(config: Arc<Config>) -> Result<Broker, BrokerError> {
        Self::start_on(config, Arc::new(RealDisk)).await
    }

    /// As [`Broker::start`], on another disk: a simulation's, or one that fails on purpose.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub async fn start_on(config: Arc<Config>, disk: Arc<dyn Disk>) -> Result<Broker, BrokerError> {
        let dir = config.node.data_dir.clone();
        let store_config = store_config(&config.storage);
        let store = tokio::task::spawn_blocking(move || Store::open(disk, &dir, store_config))
            .await
            .map_err(|e| BrokerError::new(Reason::Internal, format!("opening the data directory: {e}")))?
            .map_err(|e| log_error(&e))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(consensus_threads())
            .thread_name("consensus")
            // No sockets here: a thread that waits only for timers and tasks is woken faster than one in the I/O driver.
            .enable_time()
            .build()
            .map_err(|e| BrokerError::new(Reason::Internal, format!("consensus runtime: {e}")))?;
        let address = match config.node.advertised_address.as_str() {
            "" => config.listeners.data.to_string(),
            address => address.to_string(),
        };
        let env = Arc::new(Environment {
            store: store.clone(),
            consensus: runtime.handle().clone(),
            node: FIRST_NODE,
            member: Member { node_id: store.node_id().to_string(), address },
            config: config.partitions.clone(),
            budget: Arc::new(Semaphore::new((config.storage.pending_bytes_max / 1024) as usize)),
            agreed: Arc::default(),
        });
        let controller = match Controller::start(env.clone()).await {
            Ok(controller) => controller,
            Err(error) => {
                runtime.shutdown_background();
                close_store(store).await;
                return Err(error);
            }
        };
        let reserve = config.storage.reserve_bytes;
        let broker = Broker {
            inner: Arc::new(Inner {
                config,
                store,
                env,
                controller,
                slots: Default::default(),
                disk_space: DiskSpace::new(reserve),
                changing_topics: tokio::sync::Mutex::new(()),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
                consensus: parking_lot::Mutex::new(Some(runtime)),
            }),
        };
        if let Err(error) = broker.settle().await {
            broker.shutdown().await;
            return Err(error);
        }
        broker.inner.tasks.spawn(sleep_idle(broker.clone()));
        broker.inner.tasks.spawn(maintain(broker.clone()));
        Ok(broker)
    }

    /// Creates the default topic and finishes deletions that a crash interrupted.
    async fn settle(&self) -> Result<(), BrokerError> {
        for deleted in self.inner.controller.state().deleted.clone() {
            self.delete_files(deleted.id).await;
        }
        let name = self.inner.config.node.default_topic.clone();
        if name.is_empty() || self.inner.controller.state().topics.contains_key(&name) {
            return Ok(());
        }
        self.create_topic(NewTopic { name, if_not_exists: true, ..NewTopic::default() }).await.map(|_| ())
    }

    /// Finishes accepted work, then closes every partition and the data directory. Long polls end at once.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        let slots: Vec<Arc<Slot>> = self.inner.slots.read().values().cloned().collect();
        for_each_bounded(slots, |slot| async move { slot.close().await }).await;
        self.inner.controller.close().await;
        close_store(self.inner.store.clone()).await;
        if let Some(runtime) = self.inner.consensus.lock().take() {
            runtime.shutdown_background();
        }
    }
}

async fn close_store(store: Arc<Store>) {
    match tokio::task::spawn_blocking(move || store.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the data directory did not close cleanly"),
        Err(error) => tracing::error!(%error, "closing the data directory panicked"),
    }
}

/// Half the cores: the API and the storage threads need the rest.
fn consensus_threads() -> usize {
    std::thread::available_parallelism().map(|cores| (cores.get() / 2).clamp(1, 8)).unwrap_or(1)
}

fn store_config(storage: &StorageConfig) -> StoreConfig {
    StoreConfig {
        index_interval_bytes: storage.index_interval_bytes,
        tail_cache_bytes: storage.tail_cache_bytes,
        // The bound is kept by the sequencers' budget: a refusal below raft would stop the group.
        max_pending_bytes: u64::MAX,
        barrier: match storage.barrier {
            BarrierKind::Auto => Barrier::Auto,
            BarrierKind::Fdatasync => Barrier::Fdatasync,
            BarrierKind::Syncfs => Barrier::Syncfs,
        },
        flush_threads: storage.flush_threads,
        ..StoreConfig::default()
    }
}

/// Wall-clock time in milliseconds since the Unix epoch: the default timestamp of records.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_millis() as i64).unwrap_or(0)
}

/// Puts partitions to sleep that nobody uses.
async fn sleep_idle(broker: Broker) {
    let idle = Duration::from_millis(broker.inner.config.partitions.idle_ms);
    let mut tick = tokio::time::interval((idle / 4).max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = broker.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let slots: Vec<Arc<Slot>> = broker.inner.slots.read().values().cloned().collect();
        for_each_bounded(slots, |slot| async move { slot.sleep_if_idle(idle).await }).await;
    }
}

/// Takes checkpoints and deletes what retention no longer keeps.
async fn maintain(broker: Broker) {
    let every = Duration::from_millis(broker.inner.config.partitions.retention_check_ms);
    let mut tick = tokio::time::interval(every.max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = broker.inner.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        broker.inner.controller.maintain().await;
        wake_for_retention(&broker).await;
        let slots: Vec<Arc<Slot>> = broker.inner.slots.read().values().cloned().collect();
        for slot in slots {
            let SlotState::Active(partition) = slot.state() else { continue };
            if let Err(error) = partition.maintain(now_ms()).await {
                tracing::warn!(partition = %slot.id(), %error, "maintenance failed");
            }
        }
    }
}

/// Opens sleeping partitions that hold something which retention may delete.
async fn wake_for_retention(broker: &Broker) {
    let state = broker.inner.controller.state();
    let limited = |topic: &&Topic| topic.settings.retention_bytes >= 0 || topic.settings.retention_ms >= 0;
    if !state.topics.values().any(|topic| limited(&topic)) {
        return;
    }
    let logs = broker.existing_logs().await;
    let now = now_ms();
    for topic in state.topics.values().filter(limited) {
        for partition in 0..topic.partitions {
            let id = LogId { topic: topic.id, partition: partition as u32 };
            let asleep = || match broker.inner.slots.read().get(&id) {
                Some(slot) => matches!(slot.state(), SlotState::Dormant),
                None => true,
            };
            if !logs.contains(&id) || !asleep() {
                continue;
            }
            let expires = match broker.inner.store.summary(id) {
                Ok(Some(summary)) => may_expire(&topic.settings, &summary, now),
                // Not closed cleanly: only opening it tells.
                Ok(None) => true,
                Err(_) => false,
            };
            if expires && let Err(error) = broker.open(topic, partition).await {
                tracing::warn!(partition = %id, %error, "a partition does not open for retention");
            }
        }
    }
}

/// Whether retention would delete something. Never true for what it would keep: a partition must not be woken in vain.
fn may_expire(settings: &TopicSettings, summary: &LogSummary, now_ms: i64) -> bool {
    // The oldest segment goes when what remains is still as large as the limit; it has at most this many bytes.
    let too_large = settings.retention_bytes >= 0
        && summary.segments > 1
        && summary.bytes >= settings.retention_bytes as u64 + settings.segment_bytes as u64;
    let too_old = settings.retention_ms >= 0
        && summary.oldest_segment_max_timestamp.is_some_and(|newest| newest < now_ms - settings.retention_ms);
    too_large || too_old
}

/// Opening or closing a partition waits for the disk; a few at a time share its flushes.
async fn for_each_bounded<F, Fut>(slots: Vec<Arc<Slot>>, act: F)
where
    F: Fn(Arc<Slot>) -> Fut,
    Fut: Future<Output = ()>,
{
    use futures::StreamExt;
    futures::stream::iter(slots).for_each_concurrent(32, act).await;
}
