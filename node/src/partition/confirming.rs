//! Answers that state what the log contains (a rejected append, a duplicate): they leave once this node has proved that it
//! still led after they were decided.
//!
//! A refusal is a read. A leader that was paused or cut off does not know what its successor has acknowledged: it would
//! reject the repeat of an acknowledged append as out of order, or report an old version of a key. So each statement waits
//! here for [`RaftGroup::confirm`].
//!
//! Cost: while the leader's lease holds, which appends renew, one message to the group's task for all statements that wait
//! at the time. Otherwise a round of heartbeats for them.

use std::sync::Arc;

use chronicle_log::mutant;
use futures::future::{BoxFuture, join_all};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::state_machine::PartitionMachine;
use crate::model::PartitionError;
use crate::raft::{LeaderTerm, RaftGroup};

/// Most statements that one proof is for.
const AT_ONCE: usize = 1024;

/// Sends an answer, or the error when there is no proof. What it returns is the rest of its work: a look at the disk.
type Statement = Box<dyn FnOnce(Result<(), PartitionError>) -> Option<BoxFuture<'static, ()>> + Send>;

/// The statements of one leadership. Its task ends when this is dropped and every statement was sent.
pub(super) struct Confirming {
    queue: mpsc::UnboundedSender<Statement>,
    task: Option<JoinHandle<()>>,
}

/// Adds statements without keeping the task running.
#[derive(Clone)]
pub(super) struct ConfirmLater {
    queue: mpsc::WeakUnboundedSender<Statement>,
}

impl Confirming {
    /// Starts to confirm statements of the leader in `term`. Once `failed` is cancelled, none is confirmed.
    pub(super) fn start(group: Arc<RaftGroup<PartitionMachine>>, term: LeaderTerm, failed: CancellationToken) -> Self {
        // Bounded by the callers: each statement answers a request whose bytes are counted until then.
        let (queue, statements) = mpsc::unbounded_channel();
        Self { queue, task: Some(tokio::spawn(confirm(group, term, failed, statements))) }
    }

    /// Returns a handle for entries that have not committed yet.
    pub(super) fn later(&self) -> ConfirmLater {
        ConfirmLater { queue: self.queue.downgrade() }
    }

    /// The task, to be awaited after this is dropped; once.
    pub(super) fn task(&mut self) -> Option<JoinHandle<()>> {
        self.task.take()
    }
}

impl ConfirmLater {
    /// Calls `statement` once with the proof that this node led after this call, or with why there is none, and runs what it
    /// returns to its end.
    pub(super) fn then(
        &self,
        statement: impl FnOnce(Result<(), PartitionError>) -> Option<BoxFuture<'static, ()>> + Send + 'static,
    ) {
        let statement: Statement = Box::new(statement);
        let refused = match self.queue.upgrade() {
            Some(queue) => queue.send(statement).err().map(|refused| refused.0),
            None => Some(statement),
        };
        if let Some(statement) = refused {
            // Without a proof there is no further work.
            statement(Err(unconfirmed()));
        }
    }
}

async fn confirm(
    group: Arc<RaftGroup<PartitionMachine>>,
    term: LeaderTerm,
    failed: CancellationToken,
    mut statements: mpsc::UnboundedReceiver<Statement>,
) {
    let mut waiting = Vec::new();
    while statements.recv_many(&mut waiting, AT_ONCE).await > 0 {
        let proof = tokio::select! {
            biased;
            () = failed.cancelled() => Err(unconfirmed()),
            () = std::future::ready(()), if mutant!("refusals-need-no-proof") => Ok(()),
            proof = group.confirm(term) => proof.map_err(|error| error.refusal()),
        };
        join_all(waiting.drain(..).filter_map(|statement| statement(proof.clone()))).await;
    }
}

fn unconfirmed() -> PartitionError {
    PartitionError::Unavailable("leadership ended before it was confirmed".into())
}
