//! The topic `trail`: large records of which retention keeps few, so that segments are sealed and deleted all the time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use chronicle_client::{ClientError, ConsumerConfig, Partition, ProducerConfig, ReadFrom, Record, StoredRecord};
use tokio::time::{sleep, timeout};

use crate::board::{Clients, LOOK, TRAIL, stamp, value};
use crate::tally::count;
use crate::trace::note;

/// What the clients of the trail saw.
#[derive(Default)]
pub(crate) struct TrailHistory {
    /// Offset of each acknowledged record, by its number.
    acknowledged: BTreeMap<u64, i64>,
    /// Records that were certainly not accepted.
    refused: Vec<u64>,
    /// Number of the record at each offset, as read.
    read: BTreeMap<i64, u64>,
}

impl TrailHistory {
    fn written(&mut self, number: u64, answer: Result<i64, ClientError>) {
        match answer {
            Ok(offset) => {
                count("ops.appends acknowledged");
                note("trail", &format!("{number} is at {offset}"));
                self.acknowledged.insert(number, offset);
            }
            Err(error) => {
                note("trail", &format!("{number} failed: {error}"));
                if error.not_accepted() {
                    self.refused.push(number);
                }
            }
        }
    }

    /// Checks what was written and read against what is stored from `earliest` on.
    ///
    /// # Errors
    /// The first contradiction.
    pub(crate) fn check(&self, earliest: i64, stored: &[StoredRecord]) -> anyhow::Result<()> {
        let mut by_offset = BTreeMap::new();
        let mut places = self.read.clone();
        for (due, record) in (earliest..).zip(stored) {
            ensure!(record.offset == due, "the trail holds offset {} where {due} is due", record.offset);
            let (_, number) = stamp(record.value.as_ref()).context("a record of the trail that nobody wrote")?;
            by_offset.insert(record.offset, number);
            let before = places.insert(record.offset, number);
            ensure!(
                before.is_none_or(|before| before == number),
                "trail: offset {}: {before:?} was read, {number} is stored",
                record.offset
            );
        }
        let mut numbers = BTreeMap::new();
        for (offset, number) in &places {
            let twice = numbers.insert(number, offset);
            ensure!(twice.is_none(), "trail: record {number} is at {twice:?} and at {offset}");
        }
        for (number, offset) in &self.acknowledged {
            let found = by_offset.get(offset);
            ensure!(
                *offset < earliest || found == Some(number),
                "trail: offset {offset}: {number} was acknowledged, {found:?} is stored"
            );
        }
        for number in &self.refused {
            ensure!(!numbers.contains_key(number), "trail: record {number} is stored, which was refused");
        }
        count("checks.trails");
        if earliest > 0 {
            count("checks.trails that were cut");
        }
        Ok(())
    }
}

impl Clients {
    /// Writes large records until told to stop.
    pub(crate) async fn trail_writer(self) -> anyhow::Result<()> {
        self.until(|board| board.ready.get()).await;
        let client = self.client(ReadFrom::Leader, Duration::from_secs(20))?;
        let producer = || client.producer(Partition::new(TRAIL, 0), ProducerConfig::default());
        let mut current = producer();
        let mut number = 0;
        while !self.board.stop.get() {
            let answer = match current.send(Record::value(value(1, number, 6000))).await {
                Ok(delivery) => delivery.await,
                Err(error) => {
                    note("trail", &format!("the producer failed: {error}"));
                    current = producer();
                    continue;
                }
            };
            self.board.trail.borrow_mut().written(number, answer);
            number += 1;
            sleep(self.pace).await;
        }
        self.done();
        Ok(())
    }

    /// Follows the trail, from its beginning again whenever that has moved past it.
    pub(crate) async fn trail_reader(self) -> anyhow::Result<()> {
        self.until(|board| board.ready.get()).await;
        let client = self.client(ReadFrom::Followers, Duration::from_secs(20))?;
        let mut consumer = client.consumer(Partition::new(TRAIL, 0), ConsumerConfig::default());
        while !self.board.stop.get() {
            let Ok(batch) = timeout(LOOK, consumer.next_batch()).await else { continue };
            match batch {
                Ok(batch) => {
                    for record in batch {
                        let (_, number) =
                            stamp(record.value.as_ref()).context("a record of the trail that nobody wrote")?;
                        let before = self.board.trail.borrow_mut().read.insert(record.offset, number);
                        ensure!(
                            before.is_none_or(|before| before == number),
                            "trail: offset {} was read as {before:?} and as {number}",
                            record.offset
                        );
                        count("ops.records read");
                    }
                }
                Err(error) => {
                    note("trail", &format!("reading: {error}"));
                    consumer = client.consumer(Partition::new(TRAIL, 0), ConsumerConfig::default());
                    sleep(LOOK).await;
                }
            }
        }
        self.done();
        Ok(())
    }
}
