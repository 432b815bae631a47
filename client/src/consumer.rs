//! The records of a partition from a position on, across reconnects.
//!
//! Invariant: `position` is the offset after the last record handed out by the node and taken from the stream; a stream
//! that breaks is opened again there, on whichever replica, and records below it are dropped, so none is missed or given
//! twice: an offset is the same record everywhere. A start at the end or at a time is turned into an offset, by the leader,
//! before the first stream opens; otherwise a reconnect would jump over what came between, and a follower that is behind
//! would take its own end for the end.
//!
//! What a follower refuses is asked of the leader before it is believed (`attempts.rs`).

use std::collections::VecDeque;

use chronicle_proto::v1;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use crate::attempts::Attempts;
use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use crate::record::{Partition, Position, StoredRecord};
use crate::resolver::{Route, Target};

/// A reader at the end hears nothing while all is well. After this many times the client's `suspect_after` it asks whether its
/// node is still there.
const IDLE_SUSPICION: u32 = 5;

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
    target: Target,
    attempts: Attempts,
    /// Where the stream is, or the attempt to open one failed.
    route: Option<Route>,
    /// Since when the stream is open.
    opened: Instant,
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
        let target = Target::Reader(partition.clone());
        Self {
            attempts: client.attempts(target.clone()),
            client,
            partition,
            position: config.from,
            config,
            stream: None,
            records: VecDeque::new(),
            target,
            route: None,
            opened: Instant::now(),
            give_up: None,
            empty_ends: 0,
        }
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
        self.find_start().await?;
        loop {
            if let (Some(until), Position::Offset(next)) = (self.config.until_offset, self.position)
                && next >= until
            {
                self.stream = None;
                return Ok(false);
            }
            let error = match self.receive().await {
                Ok(Received::Answer(answer)) => {
                    if let Some(route) = &self.route {
                        self.attempts.succeeded(route);
                    }
                    self.give_up = None;
                    self.empty_ends = 0;
                    self.take(answer);
                    return Ok(true);
                }
                Ok(Received::End) => {
                    self.close();
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
                    self.close();
                    error
                }
            };
            self.pause_after(error).await?;
        }
    }

    /// Drops the stream. One that stood for a while, though nothing came, was no failure: what follows is counted anew.
    fn close(&mut self) {
        if self.stream.take().is_some() && self.opened.elapsed() >= self.client.config().suspect_after {
            self.give_up = None;
            self.attempts.progressed();
        }
    }

    /// Waits before the next attempt, or hands the error back when it is final or the time is up.
    async fn pause_after(&mut self, error: ClientError) -> Result<(), ClientError> {
        let Some(route) = &self.route else { return Err(error) };
        let mut error = self.attempts.judge(route, error);
        if let (false, Position::Offset(asked)) = (error.is_retryable(), self.position)
            && self.client.is_refuted(&self.partition, asked, &error).await?
        {
            error.kind = ErrorKind::Retryable;
        }
        if !error.is_retryable() {
            return Err(error);
        }
        let timeout = self.client.config().request_timeout;
        let give_up = *self.give_up.get_or_insert_with(|| Instant::now() + timeout);
        match timeout_at(give_up, self.attempts.failed(route, &error)).await {
            Ok(pause) if Instant::now() + pause < give_up => {
                tracing::debug!(%error, partition = %self.partition, position = ?self.position, "reading again");
                sleep(pause).await;
                Ok(())
            }
            _ => {
                self.give_up = None;
                Err(self.attempts.give_up(Some(route), error).after_deadline(timeout))
            }
        }
    }

    /// Turns a start that depends on the state of the log into an offset.
    async fn find_start(&mut self) -> Result<(), ClientError> {
        // Kept as soon as it is known, for the case that the stream does not open.
        match self.position {
            Position::Latest => {
                let offsets = self.client.list_offsets(&self.partition, None).await?;
                self.position = Position::Offset(offsets.next);
            }
            Position::Timestamp(time) => {
                let offsets = self.client.list_offsets(&self.partition, Some(time)).await?;
                self.position = Position::Offset(offsets.at_timestamp.map_or(offsets.next, |found| found.offset));
            }
            Position::Offset(_) | Position::Earliest => {}
        }
        Ok(())
    }

    /// The stream stays in `self` while waiting, so that dropping the future loses nothing.
    async fn receive(&mut self) -> Result<Received, ClientError> {
        if self.stream.is_none() {
            let stream = self.open().await?;
            self.stream = Some(stream);
            self.opened = Instant::now();
        }
        let (Some(stream), Some(route)) = (&mut self.stream, &self.route) else {
            return Err(ClientError::new(ErrorKind::Transport { sent: false }, "CONNECTION_LOST", "no stream is open"));
        };
        let silence = self.client.config().suspect_after * IDLE_SUSPICION;
        // An answer is taken only by the branch that completes.
        tokio::select! {
            answer = stream.message() => Ok(answer?.map_or(Received::End, Received::Answer)),
            () = self.client.resolver().superseded(&self.target, route, silence) => {
                let why = "the node is not alive any more, or does not hold the partition";
                Err(ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", why))
            }
        }
    }

    async fn open(&mut self) -> Result<Streaming<v1::ConsumeResponse>, ClientError> {
        let config = self.client.config();
        let until = Instant::now() + config.request_timeout;
        let late = |why: &str| ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", why);
        let route = timeout_at(until, self.attempts.route()).await;
        let route = self.route.insert(route.map_err(|_| late("no node said where the partition is"))?);
        let request = v1::ConsumeStreamRequest {
            partition: Some((&self.partition).into()),
            from: Some(self.position.into()),
            max_bytes: self.config.max_bytes,
            raw_batches: false,
            until_offset: self.config.until_offset,
        };
        // A follower that lets wait is left for another replica; the leader, when another leads.
        let patient_until = if route.is_authority { until } else { until.min(Instant::now() + config.suspect_after) };
        let mut log = self.client.log(route.channel());
        tokio::select! {
            opened = timeout_at(patient_until, log.consume_stream(request)) => {
                Ok(opened.map_err(|_| late("the stream did not open"))??.into_inner())
            }
            () = self.client.resolver().superseded(&self.target, route, config.suspect_after) => {
                Err(late("the stream did not open, and the node is not alive any more"))
            }
        }
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
