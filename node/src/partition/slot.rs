//! The place of a partition on this node: opens it on first use, fills its log when it must, lets it sleep, starts it again
//! after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chronicle_log::{Log, LogError, LogId};
use chronicle_proto::internal::raft_frame::Message;
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fill::{self, FillProgress, FillReason};
use super::{Environment, Partition, PartitionRole, log_error};
use crate::broker::{BrokerError, Reason};

/// First and longest wait before a failed partition is tried again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Wait before a filling that broke off goes on.
const FILL_RETRY: Duration = Duration::from_millis(500);
/// How long a request waits for somebody to lead a partition that it has woken.
const LEAD_PATIENCE: Duration = Duration::from_secs(3);

/// What a slot holds.
#[derive(Clone)]
pub enum SlotState {
    /// Not open; the next use opens it.
    Dormant,
    /// Open.
    Active(Arc<Partition>),
    /// Its log is brought up to date from another replica; its group does not run.
    Filling(Arc<Filling>),
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

/// A filling under way.
pub struct Filling {
    /// How far it is.
    pub progress: FillProgress,
    stop: CancellationToken,
    task: parking_lot::Mutex<Option<tokio::task::JoinHandle<()>>>,
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

    /// The replica has lost something that it may have acknowledged, and is not whole again.
    pub fn is_damaged(&self) -> bool {
        fill::pending(&self.env.store, self.id) == Some(FillReason::Damaged)
    }

    /// What the slot holds once an opening or closing under way is done.
    pub async fn settled(&self) -> SlotState {
        let _changing = self.changing.lock().await;
        self.state()
    }

    /// The partition, opened if need be. Opening goes on when the caller goes away: the next one finds it open.
    ///
    /// # Errors
    /// What keeps it from opening; after a failure, that error until the next try is due; [`Reason::NotLeader`] when this
    /// node holds no replica, or one that is filling.
    pub async fn get(self: &Arc<Self>) -> Result<Arc<Partition>, BrokerError> {
        self.used();
        if let Some(partition) = self.active() {
            return Ok(partition);
        }
        let slot = self.clone();
        tokio::spawn(async move { slot.open().await }).await.map_err(interrupted)?
    }

    /// The partition, led by this node: opened and elected if need be.
    ///
    /// # Errors
    /// As [`Slot::get`]; [`Reason::NotLeader`] with the leader's address.
    pub async fn lead(self: &Arc<Self>) -> Result<Arc<Partition>, BrokerError> {
        let partition = self.get().await?;
        if !matches!(partition.role(), PartitionRole::Leading(_)) {
            partition.lead(LEAD_PATIENCE).await?;
        }
        Ok(partition)
    }

    /// Answers a raft message of another node.
    pub async fn raft(self: &Arc<Self>, from: u64, message: Message) -> Message {
        let partition = match self.active() {
            Some(partition) => partition,
            None => {
                let slot = self.clone();
                let opened = tokio::spawn(async move { slot.open().await }).await.map_err(interrupted);
                match opened.and_then(|opened| opened) {
                    Ok(partition) => partition,
                    Err(error) => return Message::Refused(error.message),
                }
            }
        };
        let behind = matches!(message, Message::Snapshot(_));
        let answer = partition.group().handle(from, message).await;
        if behind && matches!(answer, Message::Refused(_)) {
            drop(partition);
            self.refill(FillReason::Behind).await;
        }
        answer
    }

    fn used(&self) {
        self.last_used.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn active(&self) -> Option<Arc<Partition>> {
        match &*self.state.read() {
            SlotState::Active(partition) if partition.failure().is_none() => Some(partition.clone()),
            _ => None,
        }
    }

    async fn open(self: Arc<Self>) -> Result<Arc<Partition>, BrokerError> {
        let _changing = self.changing.lock().await;
        let state = self.state();
        let wait = match state {
            SlotState::Closed => {
                return Err(BrokerError::new(Reason::Unavailable, "the partition is closed"));
            }
            SlotState::Filling(_) => return Err(self.filling()),
            SlotState::Active(partition) => match partition.failure() {
                None => return Ok(partition),
                Some(error) => {
                    tracing::warn!(partition = %self.id, %error, "partition failed and starts again from disk");
                    self.set(SlotState::Failed { error: error.clone(), until: Instant::now(), next: RETRY_MIN });
                    let others = partition.group().status().voters.iter().any(|node| *node != self.env.node());
                    partition.close().await;
                    // Sealed segments are not read when a log is opened: what reading found must be repaired here.
                    let damaged = damaged_index(&error);
                    if let Some(index) = damaged.filter(|_| others && error.reason == Reason::DataDamaged) {
                        drop(partition);
                        return match self.cut(Some(index)).await {
                            Ok(()) => {
                                self.start_filling(FillReason::Damaged);
                                Err(self.filling())
                            }
                            Err(error) => Err(self.fail(error, RETRY_MIN)),
                        };
                    }
                    RETRY_MIN
                }
            },
            SlotState::Failed { error, until, .. } if Instant::now() < until => return Err(error),
            SlotState::Failed { next, .. } => next,
            SlotState::Dormant => RETRY_MIN,
        };
        // Looked up here and not by the caller: an alter that is through has been seen.
        let (Some(settings), Some(placement)) = (self.env.settings(self.id), self.env.placement(self.id)) else {
            return Err(BrokerError::new(Reason::UnknownTopic, "the topic was deleted"));
        };
        let me = self.env.node();
        if !placement.holds(me) {
            return Err(self.env.not_leader(self.env.designated(self.id)));
        }
        let others = placement.replicas.iter().chain(&placement.voters).any(|node| *node != me);
        if let Some(reason) = self.must_fill(&placement).await {
            self.start_filling(reason);
            return Err(self.filling());
        }
        match Partition::open(self.env.clone(), self.id, settings, placement).await {
            Ok(partition) => {
                self.used();
                self.set(SlotState::Active(partition.clone()));
                Ok(partition)
            }
            Err(error) if error.reason == Reason::DataDamaged && others => {
                tracing::error!(partition = %self.id, %error, "the log is damaged: it is repaired from another replica");
                // Opening reads more than the end of the log: what the last checkpoint does not cover is applied again.
                match self.cut(damaged_index(&error)).await {
                    Ok(()) => {
                        self.start_filling(FillReason::Damaged);
                        Err(self.filling())
                    }
                    Err(error) => Err(self.fail(error, wait)),
                }
            }
            Err(error) => Err(self.fail(error, wait)),
        }
    }

    fn fail(&self, error: BrokerError, wait: Duration) -> BrokerError {
        tracing::error!(partition = %self.id, %error, retry_ms = wait.as_millis() as u64, "partition does not open");
        let next = (wait * 2).min(RETRY_MAX);
        self.set(SlotState::Failed { error: error.clone(), until: Instant::now() + wait, next });
        error
    }

    /// Why the log must be filled before the group may run, if it must.
    async fn must_fill(&self, placement: &crate::controller::Placement) -> Option<FillReason> {
        if let Some(reason) = fill::pending(&self.env.store, self.id) {
            return Some(reason);
        }
        if placement.founders.contains(&self.env.node()) {
            return None;
        }
        let (store, id) = (self.env.store.clone(), self.id);
        let exists = crate::host::blocking(move || store.list_logs().map(|logs| logs.contains(&id))).await;
        match exists {
            Ok(Ok(false)) => Some(FillReason::Behind),
            // What cannot be told shows when the log is opened.
            Ok(_) | Err(_) => None,
        }
    }

    /// The answer while the log is filled.
    fn filling(&self) -> BrokerError {
        let me = self.env.node();
        match self.env.designated(self.id).filter(|node| *node != me) {
            Some(node) => self.env.not_leader(Some(node)),
            None => BrokerError::new(Reason::Unavailable, "the replica's log is being filled from another replica"),
        }
    }

    /// Closes the partition and fills its log.
    async fn refill(self: &Arc<Self>, reason: FillReason) {
        let slot = self.clone();
        let done = tokio::spawn(async move {
            let _changing = slot.changing.lock().await;
            let SlotState::Active(partition) = slot.state() else { return };
            slot.set(SlotState::Dormant);
            partition.close().await;
            slot.start_filling(reason);
        });
        if let Err(error) = done.await {
            tracing::error!(partition = %self.id, %error, "closing a partition panicked");
        }
    }

    /// Damage was found by reading the log of an open partition: takes it out of service and repairs it, unless this is the
    /// only replica.
    pub async fn damaged(self: &Arc<Self>, index: u64) {
        let slot = self.clone();
        let done = tokio::spawn(async move {
            let _changing = slot.changing.lock().await;
            let SlotState::Active(partition) = slot.state() else { return };
            let others = partition.group().status().voters.iter().any(|node| *node != slot.env.node());
            if !others {
                return;
            }
            tracing::error!(partition = %slot.id, index, "the log is damaged: it is repaired from another replica");
            slot.set(SlotState::Dormant);
            partition.close().await;
            match slot.cut(Some(index)).await {
                Ok(()) => slot.start_filling(FillReason::Damaged),
                Err(error) => {
                    slot.fail(error, RETRY_MIN);
                }
            }
        });
        if let Err(error) = done.await {
            tracing::error!(partition = %self.id, %error, "repairing a partition panicked");
        }
    }

    /// Takes the damaged end out of a closed log, after noting that the replica has lost something. `from`: where reading has
    /// met damage; `None`: an open of the log finds it.
    async fn cut(&self, from: Option<u64>) -> Result<(), BrokerError> {
        fill::note(&self.env.store, self.id, Some(FillReason::Damaged)).await.map_err(|e| log_error(&e))?;
        let (store, id) = (self.env.store.clone(), self.id);
        let cut = crate::host::blocking(move || match from {
            Some(index) => store.cut_from(id, index),
            None => store.cut_damaged(id),
        });
        let cut = cut.await.map_err(interrupted)?.map_err(|e| log_error(&e))?;
        tracing::warn!(
            partition = %self.id,
            kept_to = cut.next_index,
            had_to = cut.was,
            quarantine = ?cut.quarantine,
            "damaged segments are set aside"
        );
        Ok(())
    }

    /// Fills the log in the background. The caller holds `changing`.
    fn start_filling(self: &Arc<Self>, reason: FillReason) {
        let filling = Arc::new(Filling {
            progress: FillProgress::default(),
            stop: CancellationToken::new(),
            task: parking_lot::Mutex::new(None),
        });
        self.set(SlotState::Filling(filling.clone()));
        let slot = self.clone();
        let run = filling.clone();
        let task = self.env.consensus.spawn(async move {
            let full = run.stop.run_until_cancelled(slot.fill(reason, &run.progress)).await.is_some();
            let mut state = slot.state.write();
            if full && matches!(&*state, SlotState::Filling(_)) {
                *state = SlotState::Dormant;
            }
        });
        *filling.task.lock() = Some(task);
    }

    /// Fills the log, however often it breaks off.
    async fn fill(&self, reason: FillReason, progress: &FillProgress) {
        loop {
            match self.fill_once(reason, progress).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(partition = %self.id, error, "filling the log broke off, and will go on");
                    tokio::time::sleep(super::jitter(FILL_RETRY)).await;
                }
            }
        }
    }

    async fn fill_once(&self, reason: FillReason, progress: &FillProgress) -> Result<(), String> {
        let text = |error: LogError| error.to_string();
        fill::note(&self.env.store, self.id, Some(reason)).await.map_err(text)?;
        let settings = self.env.settings(self.id).ok_or("the topic was deleted")?;
        let log = super::open_log(&self.env, self.id, &settings).await.map_err(|e| e.message)?;
        let open = OpenLog(Some(log.clone()));
        let filled = fill::fill(&self.env, &log, reason, progress).await;
        drop(log);
        open.close().await;
        filled?;
        fill::note(&self.env.store, self.id, None).await.map_err(text)
    }

    fn set(&self, state: SlotState) {
        *self.state.write() = state;
    }

    /// Puts the partition to sleep if nobody has used it for `idle`, nobody holds it, and its group can do without.
    pub async fn sleep_if_idle(&self, idle: Duration) {
        let quiet =
            || self.start.elapsed().saturating_sub(Duration::from_millis(self.last_used.load(Ordering::Relaxed)));
        if quiet() < idle {
            return;
        }
        let Ok(_changing) = self.changing.try_lock() else { return };
        let unused = || match &*self.state.read() {
            SlotState::Active(partition) if Arc::strong_count(partition) == 1 => Some(partition.clone()),
            _ => None,
        };
        let Some(partition) = unused() else { return };
        if !partition.may_sleep().await {
            return;
        }
        drop(partition);
        self.close_unused(|| quiet() >= idle).await;
    }

    /// Closes the partition if nobody holds it. The caller holds `changing`.
    async fn close_unused(&self, still: impl Fn() -> bool) {
        let partition = {
            let mut state = self.state.write();
            // One reference is the slot's own; under the write lock nobody gets another.
            match &*state {
                SlotState::Active(partition) if Arc::strong_count(partition) == 1 && still() => {
                    let partition = partition.clone();
                    *state = SlotState::Dormant;
                    partition
                }
                _ => return,
            }
        };
        partition.close().await;
    }

    /// The leader goes to sleep: so does this replica when its log ends at the same place. Answers whether it does; one that
    /// is being read stays open without a leader.
    pub async fn sleep_with_leader(self: &Arc<Self>, position: chronicle_proto::internal::LogPosition) -> bool {
        let Some(partition) = self.active() else { return matches!(self.state(), SlotState::Dormant) };
        let rests = partition.rest_at(position).await;
        drop(partition);
        if rests {
            let slot = self.clone();
            tokio::spawn(async move {
                let _changing = slot.changing.lock().await;
                let resting = || slot.active().is_some_and(|partition| partition.upkeep.watcher.resting());
                if resting() {
                    slot.close_unused(|| true).await;
                }
            });
        }
        rests
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
            match before {
                SlotState::Active(partition) => partition.close().await,
                SlotState::Filling(filling) => {
                    filling.stop.cancel();
                    let task = filling.task.lock().take();
                    if let Some(task) = task {
                        let _ = task.await;
                    }
                }
                SlotState::Dormant | SlotState::Failed { .. } | SlotState::Closed => {}
            }
        });
        if let Err(error) = left.await {
            tracing::error!(partition = %self.id, %error, "closing a partition panicked");
        }
    }
}

/// A log that is closed also when its filling is given up.
struct OpenLog(Option<Arc<Log>>);

impl OpenLog {
    async fn close(mut self) {
        if let Some(log) = self.0.take() {
            let _ = crate::host::blocking(move || log.close()).await;
        }
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        if let Some(log) = self.0.take() {
            drop(crate::host::blocking(move || log.close()));
        }
    }
}

/// The entry at which reading has met damage, if the error is that and says so.
fn damaged_index(error: &BrokerError) -> Option<u64> {
    error.value("index").and_then(|index| index.parse().ok())
}

/// The runtime is going away, or opening panicked.
fn interrupted(error: tokio::task::JoinError) -> BrokerError {
    BrokerError::new(Reason::Unavailable, format!("opening the partition was interrupted: {error}"))
}
