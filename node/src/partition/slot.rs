//! The place of a partition on this node: opens it on first use, lets it sleep, starts it again after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chronicle_log::LogId;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::{Environment, Partition};
use crate::broker::{BrokerError, Reason};

/// First and longest wait before a failed partition is tried again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What a slot holds.
#[derive(Clone)]
pub enum SlotState {
    /// Not open; the next use opens it.
    Dormant,
    /// Open.
    Active(Arc<Partition>),
    /// It failed; uses before `until` get the error.
    Failed {
        /// Why.
        error: BrokerError,
        /// When it may be tried again.
        until: Instant,
        /// The wait after that.
        next: Duration,
    },
    /// Its topic is gone or the node stops: it opens no more.
    Closed,
}

/// The place of one partition.
pub struct Slot {
    id: LogId,
    env: Arc<Environment>,
    state: RwLock<SlotState>,
    /// Held while the partition opens or closes.
    changing: tokio::sync::Mutex<()>,
    /// Milliseconds since `start`.
    last_used: AtomicU64,
    start: Instant,
}

impl Slot {
    /// A slot whose partition sleeps.
    pub fn new(env: Arc<Environment>, id: LogId) -> Self {
        Self {
            id,
            env,
            state: RwLock::new(SlotState::Dormant),
            changing: tokio::sync::Mutex::new(()),
            last_used: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Identity of the partition's log.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// What the slot holds now.
    pub fn state(&self) -> SlotState {
        self.state.read().clone()
    }

    /// What the slot holds once an opening or closing under way is done.
    pub async fn settled(&self) -> SlotState {
        let _changing = self.changing.lock().await;
        self.state()
    }

    /// The partition, opened if need be. Opening goes on when the caller goes away: the next one finds it open.
    ///
    /// # Errors
    /// What keeps it from opening; after a failure, that error until the next try is due.
    pub async fn get(self: &Arc<Self>) -> Result<Arc<Partition>, BrokerError> {
        self.last_used.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
        if let SlotState::Active(partition) = &*self.state.read()
            && partition.failure().is_none()
        {
            return Ok(partition.clone());
        }
        let slot = self.clone();
        tokio::spawn(async move { slot.open().await }).await.map_err(interrupted)?
    }

    async fn open(&self) -> Result<Arc<Partition>, BrokerError> {
        let _changing = self.changing.lock().await;
        let state = self.state();
        let wait = match state {
            SlotState::Closed => {
                return Err(BrokerError::new(Reason::Unavailable, "the partition is closed"));
            }
            SlotState::Active(partition) => match partition.failure() {
                None => return Ok(partition),
                Some(error) => {
                    tracing::warn!(partition = %self.id, %error, "partition failed and starts again from disk");
                    self.set(SlotState::Failed { error, until: Instant::now(), next: RETRY_MIN });
                    partition.close().await;
                    RETRY_MIN
                }
            },
            SlotState::Failed { error, until, .. } if Instant::now() < until => return Err(error),
            SlotState::Failed { next, .. } => next,
            SlotState::Dormant => RETRY_MIN,
        };
        // Looked up here and not by the caller: an alter that is through has been seen.
        let Some(settings) = self.env.settings(self.id) else {
            return Err(BrokerError::new(Reason::UnknownTopic, "the topic was deleted"));
        };
        match Partition::open(self.env.clone(), self.id, settings).await {
            Ok(partition) => {
                self.set(SlotState::Active(partition.clone()));
                Ok(partition)
            }
            Err(error) => {
                tracing::error!(partition = %self.id, %error, retry_ms = wait.as_millis() as u64, "partition does not open");
                let next = (wait * 2).min(RETRY_MAX);
                self.set(SlotState::Failed { error: error.clone(), until: Instant::now() + wait, next });
                Err(error)
            }
        }
    }

    fn set(&self, state: SlotState) {
        *self.state.write() = state;
    }

    /// Puts the partition to sleep if nobody has used it for `idle` and nobody holds it.
    pub async fn sleep_if_idle(&self, idle: Duration) {
        let quiet =
            || self.start.elapsed().saturating_sub(Duration::from_millis(self.last_used.load(Ordering::Relaxed)));
        if quiet() < idle {
            return;
        }
        let Ok(_changing) = self.changing.try_lock() else { return };
        let partition = {
            let mut state = self.state.write();
            // One reference is the slot's own; under the write lock nobody gets another.
            match &*state {
                SlotState::Active(partition) if Arc::strong_count(partition) == 1 && quiet() >= idle => {
                    let partition = partition.clone();
                    *state = SlotState::Dormant;
                    partition
                }
                _ => return,
            }
        };
        partition.close().await;
    }

    /// Closes the partition; the next use opens it with the settings of then.
    pub async fn restart(self: &Arc<Self>) {
        self.leave(SlotState::Dormant).await;
    }

    /// Closes the partition for good.
    pub async fn close(self: &Arc<Self>) {
        self.leave(SlotState::Closed).await;
    }

    /// Closes the partition, to the end even when the caller goes away.
    async fn leave(self: &Arc<Self>, then: SlotState) {
        let slot = self.clone();
        let left = tokio::spawn(async move {
            let _changing = slot.changing.lock().await;
            let before = {
                let mut state = slot.state.write();
                if matches!(*state, SlotState::Closed) {
                    return;
                }
                std::mem::replace(&mut *state, then)
            };
            if let SlotState::Active(partition) = before {
                partition.close().await;
            }
        });
        if let Err(error) = left.await {
            tracing::error!(partition = %self.id, %error, "closing a partition panicked");
        }
    }
}

/// The runtime is going away, or opening panicked.
fn interrupted(error: tokio::task::JoinError) -> BrokerError {
    BrokerError::new(Reason::Unavailable, format!("opening the partition was interrupted: {error}"))
}
