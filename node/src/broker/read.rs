//! Reads batches and offsets of one partition or of several, from a position.
//!
//! Reading at the end of a log returns an answer without batches, not an error: each listener encodes that in its own
//! way. `long_poll.rs` waits for more records, `forward.rs` reads from the leader what only the leader knows.
//!
//! Every replica may return records, which never change. That something is *not* there (past the end, or no record after
//! a time) only the leader may say, after a proof that it still leads: another node may have acknowledged it meanwhile.
//! That an offset is below the log start needs no proof, since a log start never goes back. What a damaged replica cannot
//! give, another one does (`elsewhere.rs`).

use std::time::Duration;

use chronicle_records::BatchError;
use tokio::time::Instant;

use super::long_poll::Waited;
use super::{Broker, Route};
use crate::model::{
    ApiError, Fetch, Fetched, Offsets, PartitionError, Position, Reason, STORED, TermEnd, Topic, TopicPartition, Want,
    batches_from,
};
use crate::partition::{Partition, Progress};

/// Default limit of a read, in bytes.
pub(super) const DEFAULT_FETCH_BYTES: usize = 1 << 20;

impl Broker {
    /// Reads whole stored batches of one partition. With [`Route::Leader`], and for a read without a wait, reads from the
    /// leader what this node does not have or does not know; an answer of the leader has at most about 256 KiB.
    ///
    /// # Errors
    /// `Reason::OffsetOutOfRange` below the log start or past the end; `Reason::UnknownTopic`,
    /// `Reason::UnknownPartition`, `Reason::DataDamaged`; failures of the disk; `Reason::NotLeader` with [`Route::Local`]
    /// and a wait for an offset past the end of this replica; `Reason::Unavailable` when the leader does not answer. Only
    /// with [`Route::Local`] and a wait, an answer without batches says no more than that none arrived on this replica.
    pub async fn fetch(&self, request: Fetch, route: Route) -> Result<Fetched, ApiError> {
        not_negative(request.from)?;
        let topic = self.topic(&request.target).await?;
        match self.fetch_here_or_forward(&topic, &request, route).await {
            // Boxed: rare, and large.
            Err(damage) if damage.reason == Reason::DataDamaged => {
                Box::pin(self.fetch_elsewhere(&topic, &request, damage)).await
            }
            fetched => fetched,
        }
    }

    async fn fetch_here_or_forward(&self, topic: &Topic, request: &Fetch, route: Route) -> Result<Fetched, ApiError> {
        let here = self.fetch_here(topic, request).await;
        match (route, &here) {
            (_, Ok(fetched)) if fetched.has_advanced() => {}
            // Resolved by the leader, which has proved that it leads.
            (_, Ok(_)) if request.from == Position::Latest => {}
            (Route::Leader, _) => return self.fetch_from_leader(topic.clone(), request.clone(), here).await,
            (Route::Local, Ok(_)) if !request.max_wait.is_zero() => {}
            (Route::Local, Err(error)) if !is_at_end(request.from, error) => {}
            (Route::Local, _) if request.max_wait.is_zero() => {
                return self.fetch_from_leader(topic.clone(), request.clone(), here).await;
            }
            // It could not wait here for what the leader has not either: the client goes to the leader.
            (Route::Local, _) => {
                let proven = self.fetch_as_leader(topic, request).await;
                return proven.map_err(|error| self.api_error(error));
            }
        }
        here.map_err(|error| self.api_error(error))
    }

    /// Reads as the leader, which this node proves to be.
    pub(super) async fn fetch_as_leader(&self, topic: &Topic, request: &Fetch) -> Result<Fetched, PartitionError> {
        self.inner.replicas.lead(topic, request.target.partition).await?.read_index().await?;
        self.fetch_here(topic, request).await
    }

    /// Reads what several partitions contain now, without waiting: one answer for each want, in their order. All
    /// answers together contain at most about `max_bytes` of batches, but the first partition that has records returns
    /// at least one batch. Wants after the limit is reached get an answer without batches. Otherwise such an answer says
    /// that this replica has no more; a want past the end of the replica gets `Reason::NotLeader` unless this node leads.
    pub async fn read_now(&self, wants: &[Want], max_bytes: usize) -> Vec<Result<Fetched, ApiError>> {
        let mut left = max_bytes;
        let mut answers = Vec::with_capacity(wants.len());
        for want in wants {
            let answer = self.read_want(want, left).await;
            if let Ok(fetched) = &answer {
                left = left.saturating_sub(fetched.batches.iter().map(bytes::Bytes::len).sum());
            }
            answers.push(answer);
        }
        answers
    }

    /// Reads for one want of several; `left`: bytes that all of them together may still return.
    async fn read_want(&self, want: &Want, left: usize) -> Result<Fetched, ApiError> {
        not_negative(want.from)?;
        let topic = self.topic(&want.target).await?;
        let max_bytes = self.read_bytes(want.max_bytes).min(left);
        let number = want.target.partition;
        let mut read = self.read_once(&topic, number, want.from, max_bytes).await;
        if read.as_ref().is_err_and(|error| is_at_end(want.from, error)) {
            read = async {
                self.inner.replicas.lead(&topic, number).await?.read_index().await?;
                self.read_once(&topic, number, want.from, max_bytes).await
            }
            .await;
        }
        match read {
            Err(damage @ PartitionError::Damaged { .. }) => {
                let request =
                    Fetch { target: want.target.clone(), from: want.from, max_bytes, max_wait: Duration::ZERO };
                // Boxed: rare, and large.
                Box::pin(self.fetch_elsewhere(&topic, &request, self.api_error(damage))).await
            }
            read => read.map_err(|error| self.api_error(error)),
        }
    }

    /// Reads what the replica on this node has, or receives before the wait ends. [`Position::Latest`], and a time after
    /// every record here, require that this node leads the partition.
    pub(super) async fn fetch_here(&self, topic: &Topic, request: &Fetch) -> Result<Fetched, PartitionError> {
        let wait_max = Duration::from_millis(self.config().limits.wait_ms_max);
        let deadline = Instant::now() + request.max_wait.min(wait_max);
        let (number, max_bytes) = (request.target.partition, self.read_bytes(request.max_bytes));
        let mut from = request.from;
        loop {
            let fetched = self.read_once(topic, number, from, max_bytes).await?;
            // What has no records left up to the end is passed at once: the caller may be waiting for no more than that end.
            if fetched.has_advanced() || request.max_wait.is_zero() {
                return Ok(fetched);
            }
            from = Position::Offset(fetched.start_offset);
            let partition = self.inner.replicas.open(topic, number).await?;
            let waited = Waited::new(partition, fetched.start_offset as u64);
            if !self.wait_for(vec![waited], 1, deadline).await {
                return Ok(fetched);
            }
        }
    }

    /// Reads once from the replica on this node. `max_bytes` 0: the caller wants no batch.
    async fn read_once(
        &self,
        topic: &Topic,
        number: i32,
        from: Position,
        max_bytes: usize,
    ) -> Result<Fetched, PartitionError> {
        let replicas = &self.inner.replicas;
        let mut partition = replicas.open(topic, number).await?;
        let mut progress = *partition.progress().borrow();
        let id = partition.id();
        let report = |error: &PartitionError| replicas.report_damage(id, error);
        let mut found = resolve(&partition, from, progress).await.inspect_err(report)?;
        if found.is_none() {
            // Only the leader knows the end of the log.
            partition = replicas.lead(topic, number).await?;
            partition.read_index().await?;
            progress = *partition.progress().borrow();
            found = resolve(&partition, from, progress).await.inspect_err(report)?;
        }
        let start = found.unwrap_or(progress.next_offset);
        let (log_start, end) = (partition.log_start(), progress.next_offset);
        if start < log_start || start > end {
            let (offset, earliest, next) = (start as i64, log_start as i64, end as i64);
            return Err(PartitionError::OutOfRange { offset, earliest, next });
        }
        let mut fetched = Fetched {
            batches: Vec::new(),
            start_offset: start as i64,
            next_offset: start as i64,
            high_watermark: end as i64,
            log_start_offset: log_start as i64,
        };
        if start == end {
            replicas.wake_leader(topic, number, &partition);
        } else if max_bytes > 0 {
            let mut next = start;
            // Entries may have no batch left: only the end of the log ends a read without one.
            while fetched.batches.is_empty() && next < end {
                let entries = partition.read(next, progress, max_bytes).await.inspect_err(report)?;
                let Some(last) = entries.last() else { break };
                fetched.batches = batches_from(&entries, start)?;
                next = last.next_offset();
            }
            fetched.next_offset = next as i64;
            let bytes: usize = fetched.batches.iter().map(bytes::Bytes::len).sum();
            self.inner.traffic.of(&topic.name).read(next.saturating_sub(start), bytes as u64);
        }
        Ok(fetched)
    }

    /// The most bytes that a read with this limit may return.
    fn read_bytes(&self, asked: usize) -> usize {
        let asked = if asked == 0 { DEFAULT_FETCH_BYTES } else { asked };
        asked.min(self.config().limits.fetch_bytes_max)
    }

    /// Returns the end of the records of a term, as the leader of the partition knows it; `None`: the log begins after
    /// that term.
    ///
    /// # Errors
    /// `Reason::NotLeader`; as [`Broker::fetch`], without the range.
    pub async fn end_of_term(&self, target: &TopicPartition, term: u64) -> Result<Option<TermEnd>, ApiError> {
        let topic = self.topic(target).await?;
        let end = async {
            let partition = self.inner.replicas.lead(&topic, target.partition).await?;
            partition.read_index().await?;
            let progress = *partition.progress().borrow();
            partition.end_of_term(term, progress).await
        };
        end.await.map_err(|error| self.leader_error(&topic, target.partition, error))
    }

    /// Returns the offsets of a partition, and the first offset at or after a time (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// As [`Broker::fetch`], without the range; with [`Route::Local`] `Reason::NotLeader`: only the leader knows the
    /// end of the log.
    pub async fn offsets(
        &self,
        target: &TopicPartition,
        time_ms: Option<i64>,
        route: Route,
    ) -> Result<Offsets, ApiError> {
        let topic = self.topic(target).await?;
        match self.offsets_here(&topic, target.partition, time_ms).await {
            Ok(offsets) => Ok(offsets),
            Err(error) if route == Route::Leader => self.offsets_from_leader(&topic, target, time_ms, error).await,
            Err(error) => Err(self.leader_error(&topic, target.partition, error)),
        }
    }

    async fn offsets_here(&self, topic: &Topic, number: i32, time_ms: Option<i64>) -> Result<Offsets, PartitionError> {
        let partition = self.inner.replicas.lead(topic, number).await?;
        partition.read_index().await?;
        let progress = *partition.progress().borrow();
        let at_timestamp = match time_ms {
            Some(time_ms) => record_at_time(&partition, time_ms, progress).await?,
            None => None,
        };
        Ok(Offsets { earliest: partition.log_start() as i64, next: progress.next_offset as i64, at_timestamp })
    }
}

fn not_negative(from: Position) -> Result<(), ApiError> {
    match from {
        Position::Offset(offset @ ..0) => Err(ApiError::invalid("offset", offset, "must be 0 or more")),
        _ => Ok(()),
    }
}

/// Returns the offset of a position in this replica; `None`: its end.
async fn resolve(partition: &Partition, from: Position, progress: Progress) -> Result<Option<u64>, PartitionError> {
    Ok(match from {
        // The caller has checked that the offset is not negative.
        Position::Offset(offset) => Some(offset.max(0) as u64),
        Position::Earliest => Some(partition.log_start()),
        Position::Latest => None,
        Position::Timestamp(time_ms) => {
            record_at_time(partition, time_ms, progress).await?.map(|(offset, _)| offset as u64)
        }
    })
}

/// Returns whether a read that was out of range asked for an offset at the end of the replica, or behind it.
pub(super) fn is_at_end(from: Position, error: &PartitionError) -> bool {
    match (from, error) {
        (Position::Offset(offset), PartitionError::OutOfRange { next, .. }) => offset >= *next,
        (_, PartitionError::OutOfRange { .. }) => true,
        _ => false,
    }
}

/// Offset and timestamp of the first record at or after a time.
async fn record_at_time(
    partition: &Partition,
    time_ms: i64,
    progress: Progress,
) -> Result<Option<(i64, i64)>, PartitionError> {
    let Some(entry) = partition.entry_at_time(time_ms, progress).await? else { return Ok(None) };
    let mut from = entry.base_offset.max(partition.log_start());
    // The producer declares the newest timestamp of an entry: when no record of the entry has it, the search continues
    // behind the entry.
    loop {
        let entries = partition.read(from, progress, DEFAULT_FETCH_BYTES).await?;
        let Some(last) = entries.last() else { return Ok(None) };
        for batch in batches_from(&entries, from)? {
            let damaged = |e: BatchError| PartitionError::Damaged { index: None, why: format!("a stored batch: {e}") };
            for record in chronicle_records::records(&batch, &STORED).map_err(damaged)? {
                let record = record.map_err(damaged)?;
                if record.timestamp >= time_ms && record.offset >= from as i64 {
                    return Ok(Some((record.offset, record.timestamp)));
                }
            }
        }
        from = last.next_offset();
    }
}
