//! A writer with one record in flight, which records when each record was sent and acknowledged.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chronicle_client::{Client, ClientError, Partition, ProducerConfig, Record};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::disk::noise;
use super::super::load::RECORD_BYTES;

/// When a record was sent, and when its acknowledgement came.
type Write = (Instant, Instant);

/// Writes until it is stopped.
pub(super) struct Pacer {
    writes: Arc<Mutex<Vec<Write>>>,
    count: watch::Receiver<usize>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ClientError>>,
}

impl Pacer {
    /// Starts to write to partition 0 of a topic, through the client with its defaults, with an idempotent producer.
    pub(super) fn start(client: &Client, topic: &str) -> Self {
        let producer = client.producer(Partition::new(topic, 0), ProducerConfig::default());
        let writes: Arc<Mutex<Vec<Write>>> = Arc::default();
        let (counted, count) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let kept = writes.clone();
        let task = tokio::spawn(async move {
            let value = noise(RECORD_BYTES);
            while !*stopped.borrow() {
                let sent = Instant::now();
                producer.send(Record::value(value.clone())).await?.await?;
                kept.lock().unwrap_or_else(PoisonError::into_inner).push((sent, Instant::now()));
                counted.send_modify(|count| *count += 1);
            }
            producer.close().await
        });
        Self { writes, count, stop, task }
    }

    /// Waits until a record was acknowledged later than `after`; returns when the first such record was.
    pub(super) async fn acknowledged_after(&mut self, after: Instant) -> Result<Instant> {
        loop {
            let found = {
                let writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
                let first = writes.partition_point(|(_, acknowledged)| *acknowledged <= after);
                writes.get(first).map(|(_, acknowledged)| *acknowledged)
            };
            if let Some(found) = found {
                return Ok(found);
            }
            ensure!(self.count.changed().await.is_ok(), "the writer ended");
        }
    }

    /// The longest duration of a write among those that were in flight between two moments.
    pub(super) fn longest_wait(&self, from: Instant, to: Instant) -> Duration {
        let writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = writes.iter().filter(|(sent, acknowledged)| *acknowledged >= from && *sent <= to);
        under_way.map(|(sent, acknowledged)| *acknowledged - *sent).max().unwrap_or_default()
    }

    /// Stops after the write in flight; returns the number of writes.
    pub(super) async fn stop(self) -> Result<usize> {
        self.stop.send_replace(true);
        self.task.await??;
        Ok(*self.count.borrow())
    }
}
