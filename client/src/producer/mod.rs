//! Ordered appends to one partition: batched, pipelined, and by default each stored exactly once.
//!
//! `send` puts a record into a buffer bounded in bytes and returns a [`Delivery`], the future of its offset. One task
//! (`worker.rs`) owns everything behind the buffer: it forms requests, sends them over a `ProduceStream`, matches answers,
//! reconnects and repeats. What must be repeated, renumbered or given up is decided in `window.rs`, free of any I/O.

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

use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use crate::record::{Compression, Partition, Record};
use crate::trace::Sending;
use window::Item;
use worker::{Command, Worker};

/// What a buffered record weighs besides key, value and headers, in bytes: its share of the queues.
const RECORD_OVERHEAD: usize = 160;

/// How a producer batches and waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerConfig {
    /// Repeat appends whose outcome is open under a producer id and sequence, so that each record is stored once. Without
    /// it such appends end as `OUTCOME_UNKNOWN`, and one request is in flight at a time, to keep the order. Default: true.
    pub idempotent: bool,
    /// How the node stores the batches. Default: none.
    pub compression: Compression,
    /// Records of one request. Default: 10000.
    pub batch_records_max: usize,
    /// Bytes of one request, as stored; a larger record goes alone, and it is the node that judges it.
    /// Default: 1 MiB.
    pub batch_bytes_max: usize,
    /// Wait this long for more records before sending a request that is not full. At zero, requests still grow while
    /// as many as allowed are in flight. Default: 0.
    pub linger: Duration,
    /// Requests sent and not answered yet. A node must remember as many per producer to recognise repetitions; the Kafka
    /// protocol promises 5. Default: 5.
    pub in_flight_max: usize,
    /// Largest item (one `send`) in bytes; more is refused here, because a node ends the whole stream when it is sent a
    /// message above its limit (`limits.request-bytes-max`, 8 MiB by default). Default: 8 MiB less 64 KiB.
    pub item_bytes_max: usize,
    /// Bytes of records accepted and not answered yet; above it `send` waits. Default: 32 MiB.
    pub buffer_bytes_max: usize,
    /// How long a record may stay unanswered, retries included. Default: 60 s.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            idempotent: true,
            compression: Compression::None,
            batch_records_max: 10_000,
            batch_bytes_max: 1 << 20,
            linger: Duration::ZERO,
            in_flight_max: 5,
            item_bytes_max: (8 << 20) - (64 << 10),
            buffer_bytes_max: 32 << 20,
            delivery_timeout: Duration::from_secs(60),
        }
    }
}

/// Appends to one partition in the order of the calls to [`Producer::send`].
///
/// A record that the node rejects fails alone; those after it go on. When an append's outcome cannot be found out any
/// more, order and uniqueness cannot be promised for what follows: the producer then fails as a whole, and says so on
/// every later call.
///
/// Dropping a producer stops it at once; [`Producer::close`] finishes first.
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
    pub(crate) fn start(client: Client, partition: Partition, config: ProducerConfig) -> Self {
        // The channel itself has no bound: everything in it holds permits of the buffer, which has one in bytes.
        let (commands, receiver) = mpsc::unbounded_channel();
        let buffer_bytes_max = u32::try_from(config.buffer_bytes_max.max(1)).unwrap_or(u32::MAX);
        let failure = Arc::new(OnceLock::new());
        let worker = Worker::new(client, partition.clone(), config.clone(), receiver, failure.clone());
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

    /// Accepts one record; waits while the buffer is full. The delivery gives its offset.
    ///
    /// Cancellation-safe: a cancelled call has accepted nothing.
    ///
    /// # Errors
    /// When the record is too large or the producer has failed.
    pub async fn send(&self, record: Record) -> Result<Delivery, ClientError> {
        self.accept(vec![record], None).await
    }

    /// Accepts records that are stored together, all or none, without gaps; waits while the buffer is full. The delivery
    /// gives the offset of the first.
    ///
    /// # Errors
    /// When `records` is empty or too large, or the producer has failed.
    pub async fn send_batch(&self, records: Vec<Record>) -> Result<Delivery, ClientError> {
        self.accept(records, None).await
    }

    /// As [`Self::send_batch`], stored only if the expectation holds; else the delivery fails with `VERSION_CONFLICT`.
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
            return Err(ClientError::invalid("records", "0 records", "must be one or more"));
        }
        let trace = Sending::start(&self.partition, &mut records);
        let payload: usize = records.iter().map(Record::payload_bytes).sum();
        if payload > self.item_bytes_max {
            let message = format!("the record has {payload} bytes; the producer takes at most {}", self.item_bytes_max);
            return Err(ClientError::new(ErrorKind::Rejected, "RECORD_TOO_LARGE", message));
        }
        let weight = u32::try_from(payload + records.len() * RECORD_OVERHEAD).unwrap_or(u32::MAX);
        let room = self.buffer.clone().acquire_many_owned(weight.min(self.buffer_bytes_max));
        let permit = room.await.map_err(|_| self.closed())?;
        let (reply, answer) = oneshot::channel();
        let item = Item {
            records: records.into_iter().map(Into::into).collect(),
            payload_bytes: payload,
            expectation,
            expires: Instant::now() + self.delivery_timeout,
            reply,
            trace,
            _permit: Some(permit),
            number: 0,
        };
        self.commands.send(Command::Append(item)).map_err(|_| self.closed())?;
        Ok(Delivery { answer, failure: self.failure.clone() })
    }

    /// Waits until everything accepted so far is answered.
    ///
    /// # Errors
    /// The first failure of a record since the last flush.
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
        .unwrap_or_else(|| ClientError::new(ErrorKind::Rejected, "PRODUCER_CLOSED", "the producer was closed"))
}

/// The future of a record's offset (of the first record's, for a batch). Dropping it does not take the record back.
#[derive(Debug)]
pub struct Delivery {
    answer: oneshot::Receiver<Result<i64, ClientError>>,
    failure: Arc<OnceLock<ClientError>>,
}

impl Future for Delivery {
    type Output = Result<i64, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Unanswered, because the producer was dropped: whether the record was sent is not known here.
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err(closed(&self.failure).into_unknown())))
    }
}
