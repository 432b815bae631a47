//! The consumer: the records of a partition from a position on, across reconnects.
//!
//! Promise: no record is missed or returned twice.
//!
//! Invariant: `position` is the offset after the last record taken from a stream. When a stream breaks, the next one opens there,
//! on any replica, and records below it are dropped; an offset is the same record on every replica. A start at the end or at a
//! time is resolved to an offset, by the leader, before the first stream opens. Otherwise a reconnect would skip the records
//! in between, and a follower that is behind would take its own end for the end of the log.
//!
//! When a follower refuses a read, the leader is asked before the refusal is final (`attempts.rs`).
//!
//! Stands on `connection.rs`. It does not name the client or consumer groups.

use std::collections::VecDeque;

use chronicle_proto::v1;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use crate::attempts::Attempts;
use crate::config::ConsumerConfig;
use crate::connection::Connection;
use crate::error::{ClientError, ErrorKind};
use crate::record::{Partition, Position, StoredRecord};
use crate::resolver::{Route, Target};

/// A reader at the end of the log receives nothing while all is well. After this many times the client's `suspect_after` it
/// checks whether its node is still alive.
const IDLE_SUSPICION: u32 = 5;

/// Reads one partition. Buffers at most one response of the node, plus what HTTP/2 flow control lets it send ahead.
pub struct Consumer {
    connection: Connection,
    partition: Partition,
    config: ConsumerConfig,
    position: Position,
    stream: Option<Streaming<v1::ConsumeResponse>>,
    records: VecDeque<StoredRecord>,
    target: Target,
    attempts: Attempts,
    /// The node that the stream, or the failed attempt to open one, went to.
    route: Option<Route>,
    /// When the stream was opened.
    opened: Instant,
    /// When the current run of failures ends with an error; `None` while all is well.
    give_up: Option<Instant>,
    /// Streams in a row that the node closed without an error and without a response.
    empty_ends: u32,
}

/// What a stream returned.
enum Received {
    Answer(v1::ConsumeResponse),
    /// The node closed the stream without an error: `until_offset` is reached, or the node is stopping.
    End,
}

impl Consumer {
    pub(crate) fn new(connection: Connection, partition: Partition, config: ConsumerConfig) -> Self {
        let target = Target::Reader(partition.clone());
        Self {
            attempts: connection.attempts(target.clone()),
            connection,
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
    /// Cancellation-safe: dropping the future loses no record.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE` when retention has passed the position; other refusals; or the last failure once reconnecting
    /// has failed for the client's request timeout. The next call tries again from the same position.
    pub async fn next(&mut self) -> Result<Option<StoredRecord>, ClientError> {
        while self.records.is_empty() {
            if !self.fill().await? {
                return Ok(None);
            }
        }
        Ok(self.records.pop_front())
    }

    /// All buffered records; waits until there is one. Empty after the last one before `until_offset`.
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

    /// Takes one response from the node, and opens a stream if there is none. False: the end was reached.
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
                    // Either the last offsets before the end have no records any more, or the node is stopping. If the next
                    // stream ends at once too, it is the former.
                    if self.config.until_offset.is_some() && self.empty_ends == 2 {
                        self.empty_ends = 0;
                        return Ok(false);
                    }
                    ClientError::new(
                        ErrorKind::Transport { sent: true },
                        "CONNECTION_LOST",
                        "the node closed the stream",
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

    /// Drops the stream. If it was open for a while it was not a failure, even if nothing came: the backoff starts over.
    fn close(&mut self) {
        if self.stream.take().is_some() && self.opened.elapsed() >= self.connection.config().suspect_after {
            self.give_up = None;
            self.attempts.progressed();
        }
    }

    /// Waits before the next attempt, or returns the error when it is final or the time is up.
    async fn pause_after(&mut self, error: ClientError) -> Result<(), ClientError> {
        let Some(route) = &self.route else { return Err(error) };
        let mut error = self.attempts.judge(route, error);
        if let (false, Position::Offset(asked)) = (error.is_retryable(), self.position)
            && self.connection.is_in_range_at_leader(&self.partition, asked, &error).await?
        {
            error.kind = ErrorKind::Retryable;
        }
        if !error.is_retryable() {
            return Err(error);
        }
        let timeout = self.connection.config().request_timeout;
        let give_up = *self.give_up.get_or_insert_with(|| Instant::now() + timeout);
        match timeout_at(give_up, self.attempts.failed(route, &error)).await {
            Ok(pause) if Instant::now() + pause < give_up => {
                tracing::debug!(%error, partition = %self.partition, position = ?self.position, "reconnecting consumer");
                sleep(pause).await;
                Ok(())
            }
            _ => {
                self.give_up = None;
                Err(self.attempts.give_up(Some(route), error).after_deadline(timeout))
            }
        }
    }

    /// Resolves a start at the end or at a time to an offset.
    async fn find_start(&mut self) -> Result<(), ClientError> {
        // The offset is stored before the stream opens, so that a retry starts at the same one.
        match self.position {
            Position::Latest => {
                let offsets = self.connection.list_offsets(&self.partition, None).await?;
                self.position = Position::Offset(offsets.next);
            }
            Position::Timestamp(time) => {
                let offsets = self.connection.list_offsets(&self.partition, Some(time)).await?;
                self.position = Position::Offset(offsets.at_timestamp.map_or(offsets.next, |found| found.offset));
            }
            Position::Offset(_) | Position::Earliest => {}
        }
        Ok(())
    }

    /// The next response. The stream stays in `self` while waiting, so that dropping the future loses nothing.
    async fn receive(&mut self) -> Result<Received, ClientError> {
        if self.stream.is_none() {
            let stream = self.open().await?;
            self.stream = Some(stream);
            self.opened = Instant::now();
        }
        let (Some(stream), Some(route)) = (&mut self.stream, &self.route) else {
            return Err(ClientError::new(ErrorKind::Transport { sent: false }, "CONNECTION_LOST", "no stream is open"));
        };
        let silence = self.connection.config().suspect_after * IDLE_SUSPICION;
        // An answer is taken only by the branch that completes.
        tokio::select! {
            answer = stream.message() => Ok(answer?.map_or(Received::End, Received::Answer)),
            () = self.connection.resolver().until_superseded(&self.target, route, silence) => {
                let why = "the node is down, or has no replica of the partition any more";
                Err(ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", why))
            }
        }
    }

    async fn open(&mut self) -> Result<Streaming<v1::ConsumeResponse>, ClientError> {
        let config = self.connection.config();
        let until = Instant::now() + config.request_timeout;
        let late = |why: &str| ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", why);
        let route = timeout_at(until, self.attempts.route()).await;
        let route = self.route.insert(route.map_err(|_| late("no node answered the metadata request"))?);
        let request = v1::ConsumeStreamRequest {
            partition: Some((&self.partition).into()),
            from: Some(self.position.into()),
            max_bytes: self.config.max_bytes,
            raw_batches: false,
            until_offset: self.config.until_offset,
        };
        // A slow follower is abandoned for another replica. A slow leader is abandoned only when another node leads.
        let patient_until =
            if route.is_authoritative { until } else { until.min(Instant::now() + config.suspect_after) };
        let mut log = self.connection.log(route.channel());
        tokio::select! {
            opened = timeout_at(patient_until, log.consume_stream(request)) => {
                Ok(opened.map_err(|_| late("the stream did not open in time"))??.into_inner())
            }
            () = self.connection.resolver().until_superseded(&self.target, route, config.suspect_after) => {
                Err(late("the stream did not open, and the node is down or has no replica of the partition any more"))
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
