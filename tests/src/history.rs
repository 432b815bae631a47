//! Records what writers and readers observed, and checks that the stored records agree with it.
//!
//! Each value that a writer ([`Load`]) sends contains the number of the writer and the number of the record. The
//! checker ([`History::check`]) goes through the stored records once and checks:
//! - offsets are dense;
//! - a record is stored at most once, and the records of a writer are in the order in which they were sent;
//! - an acknowledged record is stored at the offset of its acknowledgement;
//! - a refused record is not stored (a record with an unknown outcome may be).
//!
//! It needs one word per record sent, and time proportional to records sent and stored.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use chronicle_client::{Client, ConsumerConfig, Delivery, Partition, Position, Producer, ProducerConfig, Record};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::node::PATIENCE;
use crate::replica::Stored;

/// Length of the prefix of a value: number of the writer, number of the record.
const STAMP: usize = 12;

/// The outcome of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stored at this offset.
    Acknowledged(i64),
    /// Not stored.
    Refused,
    /// Stored or not.
    Unknown,
}

/// The history of one writer.
#[derive(Debug)]
pub struct Written {
    /// Partition that it wrote to.
    pub partition: i32,
    /// By number of the record.
    pub outcomes: Vec<Outcome>,
    /// Errors that the client did not hide, in order.
    pub errors: Vec<String>,
    /// Longest time without an acknowledgement.
    pub longest_silence: Duration,
}

/// The histories of all writers, by their number.
#[derive(Debug, Default)]
pub struct History {
    /// One per writer.
    pub writers: Vec<Written>,
}

/// Writers to start.
#[derive(Debug, Clone)]
pub struct Load {
    /// Topic written to.
    pub topic: String,
    /// Its partitions; writer *n* writes to partition *n* modulo this.
    pub partitions: i32,
    /// Number of writers.
    pub writers: u32,
    /// Each sends a record and then waits this long.
    pub pace: Duration,
    /// Size of a value in bytes, at least 12.
    pub value_bytes: usize,
    /// Records of a writer in flight, before it waits for the oldest of them.
    pub window: usize,
}

impl Load {
    /// Four writers on one partition, each some hundreds of records of 200 bytes a second.
    pub fn new(topic: &str) -> Self {
        Self {
            topic: topic.into(),
            partitions: 1,
            writers: 4,
            pace: Duration::from_millis(2),
            value_bytes: 200,
            window: 64,
        }
    }

    /// Starts the writers. They continue, also through failures of nodes, until [`Writing::stop`].
    ///
    /// # Errors
    /// `servers` are no addresses.
    pub fn start(&self, servers: &str) -> Result<Writing> {
        let (stop, stopped) = watch::channel(false);
        let acknowledged = Arc::new(watch::Sender::new(0));
        let mut tasks = Vec::new();
        for number in 0..self.writers {
            let client = Client::connect(crate::tls::client_config(servers))?;
            let writer = Writer {
                number,
                load: self.clone(),
                partition: Partition::new(&self.topic, i32::try_from(number)? % self.partitions),
                client,
                stopped: stopped.clone(),
                acknowledged: acknowledged.clone(),
            };
            tasks.push(tokio::spawn(writer.run()));
        }
        Ok(Writing { stop, acknowledged, tasks })
    }
}

/// Running writers.
#[derive(Debug)]
pub struct Writing {
    stop: watch::Sender<bool>,
    acknowledged: Arc<watch::Sender<u64>>,
    tasks: Vec<JoinHandle<Result<Written>>>,
}

impl Writing {
    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        *self.acknowledged.borrow()
    }

    /// Waits until `more` further records are acknowledged.
    ///
    /// # Errors
    /// They are not acknowledged in time, or a writer has ended.
    pub async fn progress(&self, more: u64, patience: Duration) -> Result<()> {
        let goal = self.acknowledged() + more;
        let mut told = self.acknowledged.subscribe();
        let deadline = Instant::now() + patience;
        loop {
            let now = *told.borrow_and_update();
            if now >= goal {
                return Ok(());
            }
            ensure!(
                !self.tasks.iter().any(JoinHandle::is_finished),
                "a writer ended; {now} records acknowledged, {goal} awaited"
            );
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{} of {more} records acknowledged in {patience:?}", more - (goal - now));
            // Checks from time to time whether a writer has ended.
            let _ = tokio::time::timeout(left.min(Duration::from_millis(200)), told.changed()).await;
        }
    }

    /// Stops the writers after their records in flight, and returns their histories.
    ///
    /// # Errors
    /// A writer failed in a way that no client may.
    pub async fn stop(self) -> Result<History> {
        let _ = self.stop.send(true);
        let mut history = History::default();
        for task in self.tasks {
            history.writers.push(task.await??);
        }
        Ok(history)
    }
}

struct Writer {
    number: u32,
    load: Load,
    partition: Partition,
    client: Client,
    stopped: watch::Receiver<bool>,
    acknowledged: Arc<watch::Sender<u64>>,
}

impl Writer {
    async fn run(self) -> Result<Written> {
        let mut written = Written {
            partition: self.partition.partition,
            outcomes: Vec::new(),
            errors: Vec::new(),
            longest_silence: Duration::ZERO,
        };
        let mut producer = self.producer();
        let mut sent: VecDeque<(usize, Delivery)> = VecDeque::new();
        let mut last_answer = Instant::now();
        loop {
            let stopping = *self.stopped.borrow();
            if stopping && sent.is_empty() {
                break;
            }
            if !stopping && sent.len() < self.load.window {
                let number = written.outcomes.len();
                match producer.send(Record::value(self.value(number)?)).await {
                    Ok(delivery) => {
                        written.outcomes.push(Outcome::Unknown);
                        sent.push_back((number, delivery));
                    }
                    Err(error) => {
                        // The producer has failed as a whole: a new one continues once all its deliveries are answered.
                        written.errors.push(error.to_string());
                        while let Some((number, delivery)) = sent.pop_front() {
                            self.note(&mut written, number, delivery.await, &mut last_answer);
                        }
                        producer = self.producer();
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                tokio::time::sleep(self.load.pace).await;
            }
            // Takes the answers that have arrived; with a full window, or at the end, waits for the oldest.
            let wait = stopping || sent.len() >= self.load.window;
            while let Some((number, delivery)) = sent.front_mut() {
                let answer = if wait {
                    Some(delivery.await)
                } else {
                    // Polls once: answers have arrived during the pause above.
                    futures::FutureExt::now_or_never(delivery)
                };
                let (Some(answer), number) = (answer, *number) else { break };
                sent.pop_front();
                self.note(&mut written, number, answer, &mut last_answer);
                if wait && !stopping {
                    break;
                }
            }
        }
        // Every delivery was answered: this only ends its task.
        let _ = producer.close().await;
        Ok(written)
    }

    fn note(
        &self,
        written: &mut Written,
        number: usize,
        answer: Result<i64, chronicle_client::ClientError>,
        last_answer: &mut Instant,
    ) {
        written.outcomes[number] = match answer {
            Ok(offset) => {
                written.longest_silence = written.longest_silence.max(last_answer.elapsed());
                *last_answer = Instant::now();
                self.acknowledged.send_modify(|count| *count += 1);
                Outcome::Acknowledged(offset)
            }
            Err(error) => {
                written.errors.push(error.to_string());
                if error.not_accepted() { Outcome::Refused } else { Outcome::Unknown }
            }
        };
    }

    fn producer(&self) -> Producer {
        self.client.producer(self.partition.clone(), ProducerConfig::default())
    }

    fn value(&self, number: usize) -> Result<Bytes> {
        let mut value = BytesMut::with_capacity(self.load.value_bytes.max(STAMP));
        value.put_u32(self.number);
        value.put_u64(u64::try_from(number)?);
        value.resize(self.load.value_bytes.max(STAMP), b'.');
        Ok(value.freeze())
    }
}

/// The number of the writer of a value, and the number of the record.
fn stamp(value: Option<&Bytes>) -> Option<(usize, usize)> {
    let (writer, rest) = value?.split_first_chunk::<4>()?;
    let number = u64::from_be_bytes(*rest.first_chunk()?);
    Some((usize::try_from(u32::from_be_bytes(*writer)).ok()?, usize::try_from(number).ok()?))
}

impl History {
    /// Records acknowledged.
    pub fn acknowledged(&self) -> usize {
        let outcomes = self.writers.iter().flat_map(|writer| &writer.outcomes);
        outcomes.filter(|outcome| matches!(outcome, Outcome::Acknowledged(_))).count()
    }

    /// Errors that the client did not hide.
    pub fn errors(&self) -> Vec<&str> {
        self.writers.iter().flat_map(|writer| &writer.errors).map(String::as_str).collect()
    }

    /// Offset after the last one that was acknowledged in a partition.
    pub fn end(&self, partition: i32) -> i64 {
        let writers = self.writers.iter().filter(|writer| writer.partition == partition);
        let offsets = writers.flat_map(|writer| &writer.outcomes).filter_map(|outcome| match outcome {
            Outcome::Acknowledged(offset) => Some(offset + 1),
            Outcome::Refused | Outcome::Unknown => None,
        });
        offsets.max().unwrap_or(0)
    }

    /// Longest time that a writer had no acknowledgement.
    pub fn longest_silence(&self) -> Duration {
        self.writers.iter().map(|writer| writer.longest_silence).max().unwrap_or_default()
    }

    /// Checks the stored records of one partition, from its first offset 0 on, against the answers that the writers
    /// received.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self, partition: i32, stored: &[Stored]) -> Result<()> {
        // Offset of each record, by writer and number.
        let mut places: Vec<Vec<Option<i64>>> =
            self.writers.iter().map(|writer| vec![None; writer.outcomes.len()]).collect();
        let mut last: Vec<Option<usize>> = vec![None; self.writers.len()];
        for (expected, record) in stored.iter().enumerate() {
            let offset = record.offset;
            ensure!(offset == i64::try_from(expected)?, "offset {offset} follows instead of {expected}");
            let (writer, number) =
                stamp(record.value.as_ref()).with_context(|| format!("offset {offset}: no writer made this"))?;
            let place = places.get_mut(writer).and_then(|places| places.get_mut(number));
            let place = place.with_context(|| format!("offset {offset}: writer {writer} never sent its {number}"))?;
            let by = &self.writers[writer];
            ensure!(by.partition == partition, "offset {offset}: writer {writer} wrote to partition {}", by.partition);
            if let Some(first) = place {
                bail!("offset {offset}: record {number} of writer {writer} is stored at {first} already");
            }
            *place = Some(offset);
            match by.outcomes[number] {
                Outcome::Acknowledged(told) => ensure!(
                    told == offset,
                    "offset {offset}: record {number} of writer {writer} was acknowledged at {told}"
                ),
                Outcome::Refused => bail!("offset {offset}: record {number} of writer {writer} was refused"),
                // The record may be stored late, when a new producer continued after the producer that sent it had
                // failed.
                Outcome::Unknown => continue,
            }
            if let Some(before) = last[writer] {
                ensure!(before < number, "offset {offset}: record {number} of writer {writer} after its {before}");
            }
            last[writer] = Some(number);
        }
        for (writer, (by, places)) in self.writers.iter().zip(&places).enumerate() {
            if by.partition != partition {
                continue;
            }
            for (number, outcome) in by.outcomes.iter().enumerate() {
                if let Outcome::Acknowledged(offset) = outcome {
                    ensure!(
                        places[number].is_some(),
                        "record {number} of writer {writer}, acknowledged at offset {offset}, is missing"
                    );
                }
            }
        }
        Ok(())
    }
}

/// A reader that follows a partition from its start through all failures, and keeps the records that it read.
#[derive(Debug)]
pub struct Following {
    /// Where to stop: exclusive offset, once it is known.
    until: watch::Sender<Option<i64>>,
    task: JoinHandle<Result<Vec<Stored>>>,
}

impl Following {
    /// Starts to follow.
    ///
    /// # Errors
    /// `servers` are no addresses.
    pub fn start(servers: &str, topic: &str, partition: i32) -> Result<Self> {
        let client = Client::connect(crate::tls::client_config(servers))?;
        let (until, mut limit) = watch::channel(None);
        let mut consumer = client.consumer(Partition::new(topic, partition), ConsumerConfig::from(Position::Earliest));
        let task = tokio::spawn(async move {
            let mut read: Vec<Stored> = Vec::new();
            loop {
                let end = *limit.borrow_and_update();
                let next = i64::try_from(read.len())?;
                if end.is_some_and(|end| next >= end) {
                    return Ok(read);
                }
                // Dropping this future does not lose a record that the consumer has received: `next` is
                // cancellation-safe.
                let record = tokio::select! {
                    record = consumer.next() => record.context("a reader failed")?.context("a reader came to an end")?,
                    _ = limit.changed() => continue,
                };
                ensure!(record.offset == next, "a reader received offset {} instead of {next}", record.offset);
                read.push(Stored { offset: record.offset, key: record.key, value: record.value });
            }
        });
        Ok(Self { until, task })
    }

    /// Waits until everything below `end` was read, and returns all records that were read.
    ///
    /// # Errors
    /// The reader failed, received records out of order, or does not reach `end` in time.
    pub async fn read_to(self, end: i64) -> Result<Vec<Stored>> {
        let _ = self.until.send(Some(end));
        let read = tokio::time::timeout(PATIENCE, self.task).await;
        read.with_context(|| format!("a reader did not reach offset {end} within {PATIENCE:?}"))??
    }
}

/// Checks that the records that were read are those that are stored.
///
/// # Errors
/// The first difference.
pub fn check_read(read: &[Stored], stored: &[Stored]) -> Result<()> {
    ensure!(read.len() <= stored.len(), "{} records read, {} stored", read.len(), stored.len());
    for (read, stored) in read.iter().zip(stored) {
        ensure!(read == stored, "read at offset {}: not what is stored there", read.offset);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, writer: u32, number: u64) -> Stored {
        let mut value = BytesMut::new();
        value.put_u32(writer);
        value.put_u64(number);
        Stored { offset, key: None, value: Some(value.freeze()) }
    }

    fn history(outcomes: &[&[Outcome]]) -> History {
        let writers = outcomes.iter().map(|outcomes| Written {
            partition: 0,
            outcomes: outcomes.to_vec(),
            errors: Vec::new(),
            longest_silence: Duration::ZERO,
        });
        History { writers: writers.collect() }
    }

    const UNKNOWN: Outcome = Outcome::Unknown;
    const REFUSED: Outcome = Outcome::Refused;

    fn at(offset: i64) -> Outcome {
        Outcome::Acknowledged(offset)
    }

    fn contradiction(history: &History, stored: &[Stored]) -> String {
        history.check(0, stored).expect_err("a contradiction").to_string()
    }

    #[test]
    fn a_history_that_holds_passes() {
        let history = history(&[&[at(0), at(2), UNKNOWN], &[at(1), REFUSED, UNKNOWN]]);
        let stored = [record(0, 0, 0), record(1, 1, 0), record(2, 0, 1), record(3, 1, 2)];
        history.check(0, &stored).unwrap();
    }

    #[test]
    fn acknowledged_records_must_be_at_their_offsets() {
        let lost = history(&[&[at(0), at(1)]]);
        assert!(contradiction(&lost, &[record(0, 0, 0)]).contains("is missing"));
        let moved = history(&[&[at(5)]]);
        assert!(contradiction(&moved, &[record(0, 0, 0)]).contains("acknowledged at 5"));
    }

    #[test]
    fn nothing_is_stored_twice_out_of_order_or_from_nowhere() {
        let two = history(&[&[at(0), UNKNOWN]]);
        assert!(contradiction(&two, &[record(0, 0, 0), record(1, 0, 0)]).contains("stored at 0 already"));
        let swapped = history(&[&[at(1), at(0)]]);
        assert!(contradiction(&swapped, &[record(0, 0, 1), record(1, 0, 0)]).contains("after its 1"));
        assert!(contradiction(&two, &[record(0, 0, 7)]).contains("never sent"));
        assert!(contradiction(&two, &[record(0, 3, 0)]).contains("never sent"));
        let nobody = Stored { offset: 0, key: None, value: Some(Bytes::from_static(b"x")) };
        assert!(contradiction(&two, &[nobody]).contains("no writer"));
    }

    #[test]
    fn what_was_refused_is_not_stored_and_offsets_are_dense() {
        assert!(contradiction(&history(&[&[REFUSED]]), &[record(0, 0, 0)]).contains("refused"));
        assert!(contradiction(&history(&[&[at(1)]]), &[record(1, 0, 0)]).contains("instead of 0"));
    }

    #[test]
    fn a_writer_of_another_partition_has_nothing_here() {
        let mut history = history(&[&[at(0)]]);
        history.writers[0].partition = 1;
        assert!(contradiction(&history, &[record(0, 0, 0)]).contains("wrote to partition 1"));
        history.check(0, &[]).unwrap();
    }
}
