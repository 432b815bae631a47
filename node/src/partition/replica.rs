//! The replica of a partition on this node: opens it on first use, fills its log when it must, puts it to sleep when it is idle,
//! and starts it again after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chronicle_log::{Log, LogError, LogId};
use chronicle_proto::internal::raft_frame::Message;
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::fill::{self, FillProgress, FillReason};
use super::leading::PartitionRole;
use super::open::Partition;
use super::storage::open_log;
use crate::metadata::Placement;
use crate::model::PartitionError;

/// First and longest wait before a failed partition is tried again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Wait before a filling that broke off goes on.
const FILL_RETRY: Duration = Duration::from_millis(500);
/// How long a request waits for somebody to lead a partition that it has woken.
const LEAD_PATIENCE: Duration = Duration::from_secs(3);

/// Whether a replica is open.
#[derive(Clone)]
pub enum ReplicaState {
    /// Not open; the next use opens it.
    Dormant,
    /// Open.
    Active(Arc<Partition>),
    /// Its log is brought up to date from another replica; its group does not run.
    Filling(Arc<Filling>),
    /// It failed; uses before `until` get the error.
    Failed {
        /// Why.
        error: PartitionError,
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

/// The replica of one partition on this node, open or not.
pub struct Replica {
    id: LogId,
    env: Arc<Environment>,
    state: RwLock<ReplicaState>,
    /// Held while the partition opens or closes.
    changing: tokio::sync::Mutex<()>,
    /// Milliseconds since `start`.
    last_used: AtomicU64,
    start: Instant,
}

impl Replica {
    /// A replica that is not open.
    pub fn new(env: Arc<Environment>, id: LogId) -> Self {
        Self {
            id,
            env,
            state: RwLock::new(ReplicaState::Dormant),
            changing: tokio::sync::Mutex::new(()),
            last_used: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Identity of the partition's log.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// Whether the replica is open now.
    pub fn state(&self) -> ReplicaState {
        self.state.read().clone()
    }

    /// The replica has lost something that it may have acknowledged, and is not whole again.
    pub fn is_damaged(&self) -> bool {
        fill::pending(&self.env.cluster.store, self.id) == Some(FillReason::Damaged)
    }

    /// The state once an opening or closing under way is done.
    pub async fn settled(&self) -> ReplicaState {
        let _changing = self.changing.lock().await;
        self.state()
    }

    /// The partition, opened if need be. Opening goes on when the caller goes away: the next one finds it open.
    ///
    /// # Errors
    /// What keeps it from opening; after a failure, that error until the next try is due; [`PartitionError::NotLeader`] when this
    /// node holds no replica, or one that is filling.
    pub async fn get(self: &Arc<Self>) -> Result<Arc<Partition>, PartitionError> {
        self.used();
        if let Some(partition) = self.active() {
            return Ok(partition);
        }
        let replica = self.clone();
        tokio::spawn(async move { replica.open().await }).await.map_err(interrupted)?
    }

    /// The partition, led by this node: opened and elected if need be.
    ///
    /// # Errors
    /// As [`Replica::get`]; [`PartitionError::NotLeader`] with the leader's address.
    pub async fn lead(self: &Arc<Self>) -> Result<Arc<Partition>, PartitionError> {
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
                let replica = self.clone();
                let opened = tokio::spawn(async move { replica.open().await }).await.map_err(interrupted);
                match opened.and_then(|opened| opened) {
                    Ok(partition) => partition,
                    Err(error) => return Message::Refused(error.to_string()),
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
            ReplicaState::Active(partition) if partition.failure().is_none() => Some(partition.clone()),
            _ => None,
        }
    }

    async fn open(self: Arc<Self>) -> Result<Arc<Partition>, PartitionError> {
        let _changing = self.changing.lock().await;
        let state = self.state();
        let wait = match state {
            ReplicaState::Closed => {
                return Err(PartitionError::Unavailable("the partition is closed".into()));
            }
            ReplicaState::Filling(_) => return Err(self.filling()),
            ReplicaState::Active(partition) => match partition.failure() {
                None => return Ok(partition),
                Some(error) => {
                    tracing::warn!(partition = %self.id, %error, "partition failed and starts again from disk");
                    self.set(ReplicaState::Failed { error: error.clone(), until: Instant::now(), next: RETRY_MIN });
                    let others = partition.group().status().voters.iter().any(|node| *node != self.env.cluster.node());
                    partition.close().await;
                    // Sealed segments are not read when a log is opened: what reading found must be repaired here.
                    if let Some(index) = error.damaged_index().filter(|_| others) {
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
            ReplicaState::Failed { error, until, .. } if Instant::now() < until => return Err(error),
            ReplicaState::Failed { next, .. } => next,
            ReplicaState::Dormant => RETRY_MIN,
        };
        // Looked up here and not by the caller: an alter that is through has been seen.
        let (Some(settings), Some(placement)) =
            (self.env.cluster.settings(self.id), self.env.cluster.placement(self.id))
        else {
            return Err(PartitionError::TopicDeleted);
        };
        let me = self.env.cluster.node();
        if !placement.holds(me) {
            return Err(match self.env.cluster.designated(self.id) {
                Some(leader) => PartitionError::NotLeader { leader },
                None => PartitionError::NoLeader,
            });
        }
        let others = placement.replicas.iter().chain(&placement.voters).any(|node| *node != me);
        if let Some(reason) = self.must_fill(&placement).await {
            self.start_filling(reason);
            return Err(self.filling());
        }
        match Partition::open(self.env.clone(), self.id, settings, placement).await {
            Ok(partition) => {
                self.used();
                self.set(ReplicaState::Active(partition.clone()));
                Ok(partition)
            }
            Err(error @ PartitionError::Damaged { .. }) if others => {
                tracing::error!(partition = %self.id, %error, "the log is damaged: it is repaired from another replica");
                // Opening reads more than the end of the log: what the last checkpoint does not cover is applied again.
                match self.cut(error.damaged_index()).await {
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

    fn fail(&self, error: PartitionError, wait: Duration) -> PartitionError {
        tracing::error!(partition = %self.id, %error, retry_ms = wait.as_millis() as u64, "partition does not open");
        let next = (wait * 2).min(RETRY_MAX);
        self.set(ReplicaState::Failed { error: error.clone(), until: Instant::now() + wait, next });
        error
    }

    /// Why the log must be filled before the group may run, if it must.
    async fn must_fill(&self, placement: &Placement) -> Option<FillReason> {
        if let Some(reason) = fill::pending(&self.env.cluster.store, self.id) {
            return Some(reason);
        }
        if placement.founders.contains(&self.env.cluster.node()) {
            return None;
        }
        let (store, id) = (self.env.cluster.store.clone(), self.id);
        let exists = crate::host::blocking(move || store.list_logs().map(|logs| logs.contains(&id))).await;
        match exists {
            Ok(Ok(false)) => Some(FillReason::Behind),
            // What cannot be told shows when the log is opened.
            Ok(_) | Err(_) => None,
        }
    }

    /// The answer while the log is filled.
    fn filling(&self) -> PartitionError {
        let me = self.env.cluster.node();
        match self.env.cluster.designated(self.id).filter(|node| *node != me) {
            Some(node) => PartitionError::NotLeader { leader: node },
            None => PartitionError::Unavailable("the replica's log is being filled from another replica".into()),
        }
    }

    /// Closes the partition and fills its log.
    async fn refill(self: &Arc<Self>, reason: FillReason) {
        let replica = self.clone();
        let done = tokio::spawn(async move {
            let _changing = replica.changing.lock().await;
            let ReplicaState::Active(partition) = replica.state() else { return };
            replica.set(ReplicaState::Dormant);
            partition.close().await;
            replica.start_filling(reason);
        });
        if let Err(error) = done.await {
            tracing::error!(partition = %self.id, %error, "closing a partition panicked");
        }
    }

    /// Damage was found by reading the log of an open partition: takes it out of service and repairs it, unless this is the
    /// only replica.
    pub async fn damaged(self: &Arc<Self>, index: u64) {
        let replica = self.clone();
        let done = tokio::spawn(async move {
            let _changing = replica.changing.lock().await;
            let ReplicaState::Active(partition) = replica.state() else { return };
            let others = partition.group().status().voters.iter().any(|node| *node != replica.env.cluster.node());
            if !others {
                return;
            }
            tracing::error!(partition = %replica.id, index, "the log is damaged: it is repaired from another replica");
            replica.set(ReplicaState::Dormant);
            partition.close().await;
            match replica.cut(Some(index)).await {
                Ok(()) => replica.start_filling(FillReason::Damaged),
                Err(error) => {
                    replica.fail(error, RETRY_MIN);
                }
            }
        });
        if let Err(error) = done.await {
            tracing::error!(partition = %self.id, %error, "repairing a partition panicked");
        }
    }

    /// Takes the damaged end out of a closed log, after noting that the replica has lost something. `from`: where reading has
    /// met damage; `None`: an open of the log finds it.
    async fn cut(&self, from: Option<u64>) -> Result<(), PartitionError> {
        fill::note(&self.env.cluster.store, self.id, Some(FillReason::Damaged)).await.map_err(PartitionError::from)?;
        let (store, id) = (self.env.cluster.store.clone(), self.id);
        let cut = crate::host::blocking(move || match from {
            Some(index) => store.cut_from(id, index),
            None => store.cut_damaged(id),
        });
        let cut = cut.await.map_err(interrupted)?.map_err(PartitionError::from)?;
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
        self.set(ReplicaState::Filling(filling.clone()));
        let replica = self.clone();
        let run = filling.clone();
        let task = self.env.cluster.consensus.spawn(async move {
            let full = run.stop.run_until_cancelled(replica.fill(reason, &run.progress)).await.is_some();
            let mut state = replica.state.write();
            if full && matches!(&*state, ReplicaState::Filling(_)) {
                *state = ReplicaState::Dormant;
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
                    tokio::time::sleep(crate::host::jitter(FILL_RETRY)).await;
                }
            }
        }
    }

    async fn fill_once(&self, reason: FillReason, progress: &FillProgress) -> Result<(), String> {
        let text = |error: LogError| error.to_string();
        fill::note(&self.env.cluster.store, self.id, Some(reason)).await.map_err(text)?;
        let settings = self.env.cluster.settings(self.id).ok_or("the topic was deleted")?;
        let log = open_log(&self.env, self.id, &settings).await.map_err(|e| e.to_string())?;
        let open = OpenLog(Some(log.clone()));
        let filled = fill::fill(&self.env, &log, reason, progress).await;
        drop(log);
        open.close().await;
        filled?;
        fill::note(&self.env.cluster.store, self.id, None).await.map_err(text)
    }

    fn set(&self, state: ReplicaState) {
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
            ReplicaState::Active(partition) if Arc::strong_count(partition) == 1 => Some(partition.clone()),
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
            // One reference is the replica's own; under the write lock nobody gets another.
            match &*state {
                ReplicaState::Active(partition) if Arc::strong_count(partition) == 1 && still() => {
                    let partition = partition.clone();
                    *state = ReplicaState::Dormant;
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
        let Some(partition) = self.active() else { return matches!(self.state(), ReplicaState::Dormant) };
        let rests = partition.rest_at(position).await;
        drop(partition);
        if rests {
            let replica = self.clone();
            tokio::spawn(async move {
                let _changing = replica.changing.lock().await;
                let resting = || replica.active().is_some_and(|partition| partition.upkeep.watcher.resting());
                if resting() {
                    replica.close_unused(|| true).await;
                }
            });
        }
        rests
    }

    /// Closes the partition; the next use opens it with the settings of then.
    pub async fn restart(self: &Arc<Self>) {
        self.leave(ReplicaState::Dormant).await;
    }

    /// Closes the partition for good.
    pub async fn close(self: &Arc<Self>) {
        self.leave(ReplicaState::Closed).await;
    }

    /// Closes the partition, to the end even when the caller goes away.
    async fn leave(self: &Arc<Self>, then: ReplicaState) {
        let replica = self.clone();
        let left = tokio::spawn(async move {
            let _changing = replica.changing.lock().await;
            let before = {
                let mut state = replica.state.write();
                if matches!(*state, ReplicaState::Closed) {
                    return;
                }
                std::mem::replace(&mut *state, then)
            };
            match before {
                ReplicaState::Active(partition) => partition.close().await,
                ReplicaState::Filling(filling) => {
                    filling.stop.cancel();
                    let task = filling.task.lock().take();
                    if let Some(task) = task {
                        let _ = task.await;
                    }
                }
                ReplicaState::Dormant | ReplicaState::Failed { .. } | ReplicaState::Closed => {}
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

/// The runtime is going away, or opening panicked.
fn interrupted(error: tokio::task::JoinError) -> PartitionError {
    PartitionError::Unavailable(format!("opening the partition was interrupted: {error}"))
}
