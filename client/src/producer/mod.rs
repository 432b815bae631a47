//! The producer: ordered appends to one partition, batched, pipelined, and by default each stored exactly once.
//!
//! `send` puts a record into a buffer bounded in bytes and returns a [`Delivery`], the future of its offset. One task
//! (`worker.rs`) owns everything behind the buffer: it forms requests, sends them over a `ProduceStream`, matches responses,
//! reconnects and retries. `window.rs` decides, without I/O, which requests to repeat or fail, and when a new epoch (`epoch.rs`)
//! begins.
//!
//! Stands on `connection.rs`. It does not name the client.

mod epoch;
mod request;
mod window;
mod worker;

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use chronicle_proto::v1;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::ProducerConfig;
use crate::connection::Connection;
use crate::error::{ClientError, ErrorKind};
use crate::record::{Partition, Record};
use crate::trace::SendSpan;
use request::Item;
use worker::{Command, Worker};

/// Bytes that a buffered record takes besides key, value and headers: its share of the queues.
const RECORD_OVERHEAD: usize = 160;

/// Appends to one partition in the order of the calls to [`Producer::send`].
///
/// A record that the node rejects fails alone; later records are not affected. When the outcome of an append can no longer be
/// determined, the producer cannot guarantee order and uniqueness for later records. It then fails as a whole: records whose
/// outcome is unknown fail as `OUTCOME_UNKNOWN`, and all others, later ones too, as certainly not accepted
/// ([`ClientError::not_accepted`]).
///
/// Dropping a producer stops it at once; [`Producer::close`] waits for outstanding records first.
#[derive(Debug)]
pub struct Producer {
    partition: Partition,
    commands: mpsc::UnboundedSender<Command>,
    buffer: Arc<Semaphore>,
    buffer_bytes_max: u32,
    item_bytes_max: usize,
    delivery_timeout: Duration,
    failure: Arc<OnceLock<ClientError>>,
    task: Option<JoinHandle<()>>,
}

impl Producer {
    pub(crate) fn start(connection: Connection, partition: Partition, config: ProducerConfig) -> Self {
        // The channel is unbounded, but everything in it holds permits of the buffer, which is bounded in bytes.
        let (commands, receiver) = mpsc::unbounded_channel();
        let buffer_bytes_max = u32::try_from(config.buffer_bytes_max.max(1)).unwrap_or(u32::MAX);
        let failure = Arc::new(OnceLock::new());
        let worker = Worker::new(connection, partition.clone(), config.clone(), receiver, failure.clone());
        Self {
            partition,
            commands,
            buffer: Arc::new(Semaphore::new(buffer_bytes_max as usize)),
            buffer_bytes_max,
            item_bytes_max: config.item_bytes_max,
            delivery_timeout: config.delivery_timeout,
            failure,
            task: Some(tokio::spawn(worker.run())),
        }
    }

    /// Accepts one record; waits while the buffer is full. The delivery resolves to its offset.
    ///
    /// Cancellation-safe: a cancelled call has not accepted the record.
    ///
    /// # Errors
    /// When the record is too large or the producer has failed.
    pub async fn send(&self, record: Record) -> Result<Delivery, ClientError> {
        self.accept(vec![record], None).await
    }

    /// Accepts records that are stored together, all or none, without gaps; waits while the buffer is full. The delivery
    /// resolves to the offset of the first.
    ///
    /// # Errors
    /// When `records` is empty or too large, or the producer has failed.
    pub async fn send_batch(&self, records: Vec<Record>) -> Result<Delivery, ClientError> {
        self.accept(records, None).await
    }

    /// As [`Self::send_batch`], but stores the records only if the expectation holds; otherwise the delivery fails with
    /// `VERSION_CONFLICT`.
    ///
    /// # Errors
    /// When `records` is empty or too large, or the producer has failed.
    pub async fn send_expecting(
        &self,
        records: Vec<Record>,
        expectation: v1::expectation::Expect,
    ) -> Result<Delivery, ClientError> {
        self.accept(records, Some(v1::Expectation { expect: Some(expectation) })).await
    }

    async fn accept(
        &self,
        mut records: Vec<Record>,
        expectation: Option<v1::Expectation>,
    ) -> Result<Delivery, ClientError> {
        if records.is_empty() {
            return Err(ClientError::invalid("records", 0, "must be at least one"));
        }
        let span = SendSpan::start(&self.partition, &mut records);
        let payload: usize = records.iter().map(Record::payload_bytes).sum();
        if payload > self.item_bytes_max {
            let message = format!("records: {payload} bytes: at most {} (item_bytes_max)", self.item_bytes_max);
            return Err(ClientError::new(ErrorKind::Rejected, "RECORD_TOO_LARGE", message));
        }
        let size = u32::try_from(payload + records.len() * RECORD_OVERHEAD).unwrap_or(u32::MAX);
        let room = self.buffer.clone().acquire_many_owned(size.min(self.buffer_bytes_max));
        let permit = room.await.map_err(|_| self.refused())?;
        let (reply, answer) = oneshot::channel();
        let item = Item {
            records: records.into_iter().map(Into::into).collect(),
            payload_bytes: payload,
            expectation,
            expires: Instant::now() + self.delivery_timeout,
            reply,
            span,
            _permit: Some(permit),
            number: 0,
        };
        self.commands.send(Command::Append(item)).map_err(|_| self.refused())?;
        Ok(Delivery { answer, failure: self.failure.clone() })
    }

    /// Waits until every record accepted so far is answered.
    ///
    /// # Errors
    /// The first failure of a record since the last flush. When the producer has failed, `OUTCOME_UNKNOWN` if the outcome of a
    /// record is unknown.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Flush(reply)).map_err(|_| self.closed())?;
        answer.await.map_err(|_| self.closed())?
    }

    /// Flushes, then stops.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn close(mut self) -> Result<(), ClientError> {
        let flushed = self.flush().await;
        // The task ends when the last sender is gone.
        self.commands = mpsc::unbounded_channel().0;
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
        flushed
    }

    fn closed(&self) -> ClientError {
        closed(&self.failure)
    }

    /// The error of a record that comes after the producer has failed.
    fn refused(&self) -> ClientError {
        self.failure.get().map_or_else(|| self.closed(), |failure| failure.clone().into_not_accepted())
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn closed(failure: &OnceLock<ClientError>) -> ClientError {
    failure
        .get()
        .cloned()
        .unwrap_or_else(|| ClientError::new(ErrorKind::Rejected, "PRODUCER_CLOSED", "the producer is closed"))
}

/// The future of a record's offset (for a batch: of the first record's). Dropping it does not cancel the append.
#[derive(Debug)]
pub struct Delivery {
    answer: oneshot::Receiver<Result<i64, ClientError>>,
    failure: Arc<OnceLock<ClientError>>,
}

impl Future for Delivery {
    type Output = Result<i64, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The producer was dropped without an answer: it is unknown whether the record was sent.
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err(closed(&self.failure).into_unknown())))
    }
}
