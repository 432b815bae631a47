//! The records of a partition from a position on, across reconnects.
//!
//! Invariant: `position` is the offset after the last record handed out by the node and taken from the stream; a stream
//! that breaks is opened again there, and records below it are dropped, so none is missed or given twice. A start at the
//! end is turned into an offset before the first stream opens; otherwise a reconnect would jump over what came between.

use std::collections::VecDeque;

use chronicle_proto::v1;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use crate::record::{Partition, Position, StoredRecord};
use crate::retry::Backoff;

/// How to read a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Where to start. Default: earliest.
    pub from: Position,
    /// Stop before this offset (exclusive); `None`: follow the log for ever. Default: `None`.
    pub until_offset: Option<i64>,
    /// Soft limit on the bytes of records in one answer of the node; 0: the node's default. Default: 0.
    pub max_bytes: u32,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self { from: Position::Earliest, until_offset: None, max_bytes: 0 }
    }
}

impl ConsumerConfig {
    /// From this position on, for ever.
    pub fn from(position: Position) -> Self {
        Self { from: position, ..Self::default() }
    }

    /// From this offset (inclusive) on, for ever.
    pub fn from_offset(offset: i64) -> Self {
        Self::from(Position::Offset(offset))
    }

    /// Stopping before this offset (exclusive).
    #[must_use]
    pub fn until(mut self, offset: i64) -> Self {
        self.until_offset = Some(offset);
        self
    }
}

/// Reads one partition. Holds at most one answer of the node, plus what HTTP/2 flow control lets it send ahead.
pub struct Consumer {
    client: Client,
    partition: Partition,
    config: ConsumerConfig,
    position: Position,
    stream: Option<Streaming<v1::ConsumeResponse>>,
    records: VecDeque<StoredRecord>,
    backoff: Backoff,
    /// When the current run of failures gives up; `None` while all is well.
    give_up: Option<Instant>,
    /// Streams in a row that the node ended in good order without an answer.
    empty_ends: u32,
}

/// What a stream gave.
enum Received {
    Answer(v1::ConsumeResponse),
    /// The node ended the stream in good order: `until_offset` is reached, or the node is stopping.
    End,
}

impl Consumer {
    pub(crate) fn new(client: Client, partition: Partition, config: ConsumerConfig) -> Self {
        let backoff = Backoff::new(client.retry());
        let position = config.from;
        let records = VecDeque::new();
        Self { client, partition, config, position, stream: None, records, backoff, give_up: None, empty_ends: 0 }
    }

    /// The next record; `None` after the last one before `until_offset`. Waits at the end of the log.
    ///
    /// Cancellation-safe: a record is only lost to the caller once it was returned.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE` when retention passed the position; other refusals; or the last failure once reconnecting
    /// has failed for the client's request timeout. Calling again tries again from the same place.
    pub async fn next(&mut self) -> Result<Option<StoredRecord>, ClientError> {
        while self.records.is_empty() {
            if !self.fill().await? {
                return Ok(None);
            }
        }
        Ok(self.records.pop_front())
    }

    /// All records that are at hand, waiting until there is one; empty after the last one before `until_offset`.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_batch(&mut self) -> Result<Vec<StoredRecord>, ClientError> {
        while self.records.is_empty() {
            if !self.fill().await? {
                return Ok(Vec::new());
            }
        }
        Ok(std::mem::take(&mut self.records).into())
    }

    /// The records as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl futures::Stream<Item = Result<StoredRecord, ClientError>> + Send {
        futures::stream::try_unfold(self, |mut consumer| async move {
            Ok(consumer.next().await?.map(|record| (record, consumer)))
        })
    }

    /// Takes one answer from the node, (re)opening the stream as needed. False: the end was reached.
    async fn fill(&mut self) -> Result<bool, ClientError> {
        loop {
            if let (Some(until), Position::Offset(next)) = (self.config.until_offset, self.position)
                && next >= until
            {
                self.stream = None;
                return Ok(false);
            }
            let error = match self.receive().await {
                Ok(Received::Answer(answer)) => {
                    self.backoff.reset();
                    self.give_up = None;
                    self.empty_ends = 0;
                    self.take(answer);
                    return Ok(true);
                }
                Ok(Received::End) => {
                    self.stream = None;
                    self.empty_ends += 1;
                    // Offsets up to the end may hold no records any more. A second stream that ends at once tells that
                    // apart from a node that is stopping.
                    if self.config.until_offset.is_some() && self.empty_ends == 2 {
                        self.empty_ends = 0;
                        return Ok(false);
                    }
                    ClientError::new(
                        ErrorKind::Transport { sent: true },
                        "CONNECTION_LOST",
                        "the node ended the stream",
                    )
                }
                Err(error) => {
                    self.stream = None;
                    error
                }
            };
            self.pause_after(error).await?;
        }
    }

    /// Waits before the next attempt, or hands the error back when it is final or the time is up.
    async fn pause_after(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_retryable() {
            return Err(error);
        }
        let timeout = self.client.request_timeout();
        let pause = self.backoff.pause();
        let now = Instant::now();
        if now + pause >= *self.give_up.get_or_insert(now + timeout) {
            self.give_up = None;
            return Err(error.after_deadline(timeout));
        }
        tracing::debug!(%error, partition = %self.partition, position = ?self.position, "reading again");
        sleep(pause).await;
        Ok(())
    }

    /// The stream stays in `self` while waiting, so that dropping the future loses nothing.
    async fn receive(&mut self) -> Result<Received, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let until = Instant::now() + self.client.request_timeout();
                // Kept as soon as it is known, for the case that the stream does not open.
                if self.position == Position::Latest {
                    let offsets = self.client.list_offsets(&self.partition, None).await?;
                    self.position = Position::Offset(offsets.next);
                }
                let stream = timeout_at(until, self.open()).await.map_err(|_| {
                    let why = "the stream did not open";
                    ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", why)
                })??;
                self.stream.insert(stream)
            }
        };
        Ok(stream.message().await?.map_or(Received::End, Received::Answer))
    }

    async fn open(&self) -> Result<Streaming<v1::ConsumeResponse>, ClientError> {
        let request = v1::ConsumeStreamRequest {
            partition: Some((&self.partition).into()),
            from: Some(self.position.into()),
            max_bytes: self.config.max_bytes,
            raw_batches: false,
            until_offset: self.config.until_offset,
        };
        Ok(self.client.log().consume_stream(request).await?.into_inner())
    }

    fn take(&mut self, answer: v1::ConsumeResponse) {
        let from = match self.position {
            Position::Offset(offset) => offset,
            _ => i64::MIN,
        };
        let until = self.config.until_offset.unwrap_or(i64::MAX);
        let wanted = |record: &StoredRecord| record.offset >= from && record.offset < until;
        self.records.extend(answer.records.into_iter().filter(wanted));
        let next = self.records.back().map_or(i64::MIN, |last| last.offset + 1).max(answer.next_offset);
        if next > from {
            self.position = Position::Offset(next);
        }
    }
}
