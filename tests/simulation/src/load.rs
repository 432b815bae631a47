//! The topic `orders`: writers whose records are sometimes refused, readers, and the operator.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chronicle_client::{ClientError, ConsumerConfig, Delivery, Partition, Producer, ProducerConfig, ReadFrom, Record};
use chronicle_proto::v1;
use chronicle_proto::v1::expectation::Expect;
use chronicle_tests::history::{Outcome, Written};
use chronicle_tests::replica::Stored;
use futures::FutureExt;
use rand::Rng;
use tokio::time::{Instant, sleep, timeout};

use crate::board::{Clients, LEDGER, LOOK, ORDER_BYTES_MAX, ORDERS, PARTITIONS, RECOVERY, TRAIL, value};
use crate::plan::open_defect;
use crate::tally::count;
use crate::trace::note;

/// Records that a writer leaves unanswered.
const WINDOW: usize = 16;
/// Retention by age of `orders` while that may not delete anything: longer than any simulation.
const AGE_MS: i64 = 3_600_000;

impl Clients {
    /// Creates the topics, and begins the decommission that the plan wants.
    pub(crate) async fn operator(self) -> anyhow::Result<()> {
        let client = self.client(ReadFrom::Leader, Duration::from_secs(20))?;
        let orders = v1::TopicSettings {
            max_message_bytes: Some(ORDER_BYTES_MAX),
            retention_ms: open_defect("retention-by-clock").then_some(AGE_MS),
            segment_bytes: Some(65_536),
            ..Default::default()
        };
        let trail =
            v1::TopicSettings { retention_bytes: Some(131_072), segment_bytes: Some(65_536), ..Default::default() };
        let until = Instant::now() + RECOVERY;
        for (name, partitions, settings) in
            [(ORDERS, PARTITIONS, Some(orders)), (LEDGER, 1, None), (TRAIL, 1, Some(trail))]
        {
            let name = name.to_owned();
            let request =
                v1::CreateTopicRequest { name, partitions, replication_factor: 3, settings, if_not_exists: true };
            // Fewer nodes than replicas are refused: all must have met.
            while let Err(error) = client.create_topic(request.clone()).await {
                ensure!(Instant::now() < until, "a topic is not created: {error}");
                sleep(LOOK).await;
            }
        }
        note("operator", "topics created");
        self.board.ready.set(true);
        self.until(|board| board.leaving.borrow().is_some() || board.stop.get()).await;
        let Some(node) = self.board.leaving.borrow().clone() else { return Ok(()) };
        let until = Instant::now() + RECOVERY;
        loop {
            match client.decommission(&node).await {
                Ok(_) => break,
                Err(error) => {
                    ensure!(Instant::now() < until, "{node} cannot be decommissioned: {error}");
                    note("operator", &format!("decommission of {node}: {error}"));
                    // It may have begun all the same.
                    if let Ok(status) = client.cluster_status().await
                        && status.operations.iter().any(|operation| operation.kind == "decommission")
                    {
                        break;
                    }
                }
            }
            sleep(LOOK * 4).await;
        }
        note("operator", &format!("decommission of {node} has begun"));
        self.board.left.set(true);
        Ok(())
    }

    /// Writes until told to stop; notes what became of every record.
    pub(crate) async fn writer(self, number: u32) -> anyhow::Result<()> {
        let who = format!("writer {number}");
        self.until(|board| board.ready.get()).await;
        let client = self.client(ReadFrom::Leader, Duration::from_secs(20))?;
        let partition = Partition::new(ORDERS, i32::try_from(number)? % PARTITIONS);
        let producer = || client.producer(partition.clone(), ProducerConfig::default());
        let mut written = Written {
            partition: partition.partition,
            outcomes: Vec::new(),
            errors: Vec::new(),
            longest_silence: Duration::ZERO,
        };
        let mut current = producer();
        let mut sent: VecDeque<(usize, Delivery)> = VecDeque::new();
        while !self.board.stop.get() {
            let sequence = written.outcomes.len();
            match send(&current, number, sequence as u64).await {
                Ok(delivery) => {
                    written.outcomes.push(Outcome::Unknown);
                    sent.push_back((sequence, delivery));
                }
                Err(error) => {
                    note(&who, &format!("the producer failed: {error}"));
                    while let Some((sequence, delivery)) = sent.pop_front() {
                        self.answered(&who, &mut written, sequence, delivery.await)?;
                    }
                    count("ops.producers failed");
                    current = producer();
                }
            }
            sleep(self.pause(number)).await;
            while let Some((sequence, delivery)) = sent.front_mut() {
                let sequence = *sequence;
                let answer = delivery.now_or_never();
                let Some(answer) = answer else { break };
                sent.pop_front();
                self.answered(&who, &mut written, sequence, answer)?;
            }
            while sent.len() >= WINDOW && !self.board.stop.get() {
                let (sequence, delivery) = sent.front_mut().context("the window is not empty")?;
                let sequence = *sequence;
                if let Ok(answer) = timeout(LOOK, delivery).await {
                    sent.pop_front();
                    self.answered(&who, &mut written, sequence, answer)?;
                }
            }
        }
        while let Some((sequence, delivery)) = sent.pop_front() {
            self.answered(&who, &mut written, sequence, delivery.await)?;
        }
        drop(current);
        note(&who, &format!("done: {} records", written.outcomes.len()));
        self.board.written.borrow_mut().insert(number, written);
        self.done();
        Ok(())
    }

    /// Where producers expire, every second writer rests now and then, so that its state is the one to go.
    fn pause(&self, number: u32) -> Duration {
        match self.producers_expire && number.is_multiple_of(2) && rand::rng().random_ratio(1, 20) {
            true => Duration::from_secs(2),
            false => self.pace,
        }
    }

    fn answered(
        &self,
        who: &str,
        written: &mut Written,
        sequence: usize,
        answer: Result<i64, ClientError>,
    ) -> anyhow::Result<()> {
        written.outcomes[sequence] = match answer {
            Ok(offset) => {
                self.board.acknowledged.set(self.board.acknowledged.get() + 1);
                count("ops.appends acknowledged");
                note(who, &format!("{sequence} is at {offset}"));
                Outcome::Acknowledged(offset)
            }
            Err(error) => {
                note(who, &format!("{sequence} failed: {error}"));
                let cause = error.metadata.get("cause").unwrap_or(&error.reason);
                let forgotten = cause == "OUT_OF_ORDER_SEQUENCE" || cause == "PRODUCER_FENCED";
                ensure!(!forgotten || self.producers_expire, "{who}: {sequence}: {error}: nodes forgot the producer");
                match error.not_accepted() {
                    true => {
                        count("ops.appends refused");
                        Outcome::Refused
                    }
                    false => {
                        count("ops.appends unknown");
                        Outcome::Unknown
                    }
                }
            }
        };
        Ok(())
    }

    /// Many producers of one record each, so that nodes drop the state of others.
    pub(crate) async fn crowd(self, number: u32) -> anyhow::Result<()> {
        let who = format!("crowd {number}");
        self.until(|board| board.ready.get()).await;
        let client = self.client(ReadFrom::Leader, Duration::from_secs(20))?;
        let partition = Partition::new(ORDERS, i32::try_from(number)? % PARTITIONS);
        let mut written = Written {
            partition: partition.partition,
            outcomes: Vec::new(),
            errors: Vec::new(),
            longest_silence: Duration::ZERO,
        };
        while !self.board.stop.get() {
            let producer = client.producer(partition.clone(), ProducerConfig::default());
            let sequence = written.outcomes.len();
            written.outcomes.push(Outcome::Unknown);
            let answer = match producer.send(Record::value(value(number, sequence as u64, 0))).await {
                Ok(delivery) => delivery.await,
                Err(error) => Err(error),
            };
            self.answered(&who, &mut written, sequence, answer)?;
            sleep(Duration::from_millis(200)).await;
        }
        self.board.written.borrow_mut().insert(number, written);
        self.done();
        Ok(())
    }

    /// Follows a partition from its beginning, on whatever replica answers; what it was given is checked at the end.
    pub(crate) async fn reader(self, number: u32) -> anyhow::Result<()> {
        self.until(|board| board.ready.get()).await;
        let read_from = if number % 4 < 2 { ReadFrom::Followers } else { ReadFrom::Leader };
        let client = self.client(read_from, Duration::from_secs(20))?;
        let partition = Partition::new(ORDERS, i32::try_from(number)? % PARTITIONS);
        let mut consumer = client.consumer(partition.clone(), ConsumerConfig::default());
        let mut read = Vec::new();
        while !self.board.stop.get() {
            // Now and then one begins again: what was written long ago is read from the disk.
            if rand::rng().random_ratio(1, 200) {
                consumer = client.consumer(partition.clone(), ConsumerConfig::from_offset(read.len() as i64 / 2));
                note(&format!("reader {number}"), "begins again");
            }
            let Ok(batch) = timeout(LOOK, consumer.next_batch()).await else { continue };
            match batch {
                Ok(batch) => {
                    for record in batch {
                        count("ops.records read");
                        let (at, due) = (record.offset, read.len());
                        let record = Stored { offset: record.offset, key: record.key, value: record.value };
                        match read.get(usize::try_from(at).unwrap_or(usize::MAX)) {
                            Some(before) => ensure!(
                                *before == record,
                                "reader {number} was given another record at offset {at} than before"
                            ),
                            None => {
                                ensure!(at == due as i64, "reader {number} was given offset {at} where {due} is due");
                                read.push(record);
                            }
                        }
                    }
                }
                Err(error) if error.reason == "OFFSET_OUT_OF_RANGE" => {
                    bail!("reader {number} at {}: {error}: what was read is gone", read.len());
                }
                Err(error) => note(&format!("reader {number}"), &error.to_string()),
            }
        }
        note(&format!("reader {number}"), &format!("{} records", read.len()));
        self.board.read.borrow_mut().insert(number, (partition.partition, read));
        self.done();
        Ok(())
    }
}

/// Sends a record; sometimes one that the node has to refuse, between others.
async fn send(producer: &Producer, number: u32, sequence: u64) -> Result<Delivery, ClientError> {
    // Sizes differ, so that entries and segments do.
    let more = (sequence % 97) as usize * 3;
    match rand::rng().random_range(0..24) {
        0 => producer.send(Record::value(value(number, sequence, 2 * ORDER_BYTES_MAX as usize))).await,
        // Stale as soon as anything is stored.
        1 => producer.send_expecting(vec![Record::value(value(number, sequence, more))], Expect::NextOffset(0)).await,
        _ => producer.send(Record::value(value(number, sequence, more))).await,
    }
}
