//! Reads: where a position points, what lies there, and waiting for more.

use std::time::Duration;

use chronicle_records::BatchError;
use tokio::time::Instant;

use super::{Broker, Route};
use crate::model::{
    ApiError, Fetch, Fetched, Offsets, PartitionError, Position, STORED, Topic, TopicPartition, batches_from,
};
use crate::partition::{Partition, Progress};

/// Bytes that a read returns when it does not say.
pub(super) const DEFAULT_FETCH_BYTES: usize = 1 << 20;

impl Broker {
    /// Reads whole stored batches. With [`Route::Leader`], what this node does not have or cannot tell is read from the leader
    /// of the partition: an answer from there has at most 256 KiB, about.
    ///
    /// # Errors
    /// `Reason::OffsetOutOfRange` below the log start, past the end, or at the end without a wait; `Reason::UnknownTopic`,
    /// `Reason::UnknownPartition`, `Reason::DataDamaged`; failures of the disk; `Reason::Unavailable` when the leader does not
    /// answer.
    pub async fn fetch(&self, request: Fetch, route: Route) -> Result<Fetched, ApiError> {
        if let Position::Offset(offset @ ..0) = request.from {
            return Err(ApiError::invalid("offset", offset, "must be 0 or more"));
        }
        let topic = self.topic(&request.target).await?;
        match self.fetch_here(&topic, &request).await {
            Ok(fetched) => Ok(fetched),
            Err(error) if route == Route::Leader => self.fetch_from_leader(topic, request, error).await,
            Err(error) => Err(self.api_error(error)),
        }
    }

    /// Reads what the replica on this node has; the leader's for [`Position::Latest`].
    pub(super) async fn fetch_here(&self, topic: &Topic, request: &Fetch) -> Result<Fetched, PartitionError> {
        let config = self.config();
        let limits = &config.limits;
        let max_bytes = match request.max_bytes {
            0 => DEFAULT_FETCH_BYTES.min(limits.fetch_bytes_max),
            bytes => bytes.min(limits.fetch_bytes_max),
        };
        let deadline = Instant::now() + request.max_wait.min(Duration::from_millis(limits.wait_ms_max));
        let number = request.target.partition;
        let replicas = &self.inner.replicas;
        // Where the log ends only the leader knows.
        let partition = match request.from {
            Position::Latest => replicas.lead(topic, number).await?,
            _ => replicas.open(topic, number).await?,
        };
        if let Position::Latest = request.from {
            partition.read_index().await?;
        }
        let mut updates = partition.progress();
        let mut progress = *updates.borrow_and_update();
        let start = resolve(&partition, request.from, progress).await?;
        loop {
            let log_start = partition.log_start();
            let end = progress.next_offset;
            let out_of_range =
                || PartitionError::OutOfRange { offset: start as i64, earliest: log_start as i64, next: end as i64 };
            if start < log_start || start > end {
                return Err(out_of_range());
            }
            let found = |batches, next: u64| Fetched {
                batches,
                start_offset: start as i64,
                next_offset: next as i64,
                high_watermark: end as i64,
                log_start_offset: log_start as i64,
            };
            if start < end {
                let read = partition.read(start, progress, max_bytes).await;
                let entries = read.inspect_err(|error| replicas.report_damage(partition.id(), error))?;
                let next = entries.last().map(|entry| entry.next_offset()).unwrap_or(start);
                let batches = batches_from(&entries, start)?;
                let bytes: usize = batches.iter().map(bytes::Bytes::len).sum();
                self.inner.traffic.of(&topic.name).read(next.saturating_sub(start), bytes as u64);
                return Ok(found(batches, next));
            }
            replicas.wake_leader(topic, number, &partition);
            if request.max_wait.is_zero() {
                return Err(out_of_range());
            }
            let more = tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => false,
                () = partition.stopped() => false,
                more = tokio::time::timeout_at(deadline, updates.wait_for(|p| p.next_offset > start)) => match more {
                    Ok(Ok(found)) => { progress = *found; true }
                    // The wait ran out.
                    Ok(Err(_)) | Err(_) => false,
                },
            };
            if !more {
                return Ok(found(Vec::new(), start));
            }
        }
    }

    /// Offsets of a partition, and the first at or after a time (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// As [`Broker::fetch`], without the range; with [`Route::Local`] `Reason::NotLeader`: only the leader knows where the log
    /// ends.
    pub async fn offsets(
        &self,
        target: &TopicPartition,
        time_ms: Option<i64>,
        route: Route,
    ) -> Result<Offsets, ApiError> {
        let topic = self.topic(target).await?;
        match self.offsets_here(&topic, target.partition, time_ms).await {
            Ok(offsets) => Ok(offsets),
            Err(error) if route == Route::Leader => self.offsets_from_leader(target, time_ms, error).await,
            Err(error) => Err(self.api_error(error)),
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

async fn resolve(partition: &Partition, from: Position, progress: Progress) -> Result<u64, PartitionError> {
    Ok(match from {
        // Checked where the request came in: not negative.
        Position::Offset(offset) => offset.max(0) as u64,
        Position::Earliest => partition.log_start(),
        Position::Latest => progress.next_offset,
        Position::Timestamp(time_ms) => match record_at_time(partition, time_ms, progress).await? {
            Some((offset, _)) => offset as u64,
            None => progress.next_offset,
        },
    })
}

/// Offset and timestamp of the first record at or after a time.
async fn record_at_time(
    partition: &Partition,
    time_ms: i64,
    progress: Progress,
) -> Result<Option<(i64, i64)>, PartitionError> {
    let Some(entry) = partition.entry_at_time(time_ms, progress).await? else { return Ok(None) };
    let mut from = entry.base_offset.max(partition.log_start());
    // The newest timestamp of an entry is its producer's claim: where no record keeps it, the search goes on behind.
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
