//! Once nothing is broken any more: everything works again, and what is stored is what clients were told.

use std::time::Duration;

use anyhow::{Context, ensure};
use chronicle_client::{Client, ConsumerConfig, Partition, ReadFrom, StoredRecord};
use chronicle_tests::history::{History, check_read};
use chronicle_tests::replica::Stored;
use tokio::time::{Instant, sleep, timeout};

use crate::board::{Clients, LEDGER, LOOK, ORDERS, PARTITIONS, RECOVERY, TRAIL};
use crate::tally::{count, count_many};
use crate::trace::note;

impl Clients {
    /// Waits for the end of the load, then checks everything.
    pub(crate) async fn checker(self) -> anyhow::Result<()> {
        self.until(|board| board.healed.get()).await;
        let since = Instant::now();
        while self.board.busy.get() > 0 {
            ensure!(since.elapsed() < RECOVERY, "{} clients do not come to an end", self.board.busy.get());
            sleep(LOOK).await;
        }
        // One of the addresses may be that of the node that has left: it must not answer from what it knew last.
        let client = self.client(ReadFrom::Leader, Duration::from_secs(20))?;
        if self.board.left.get() {
            self.settled(&client, since).await?;
        }
        let history =
            History { writers: std::mem::take(&mut *self.board.written.borrow_mut()).into_values().collect() };
        for partition in 0..PARTITIONS {
            let (earliest, stored) = self.stored(&client, ORDERS, partition).await?;
            ensure!(earliest == 0, "{ORDERS}/{partition} begins at {earliest}");
            let stored: Vec<Stored> = stored
                .into_iter()
                .map(|record| Stored { offset: record.offset, key: record.key, value: record.value })
                .collect();
            history.check(partition, &stored)?;
            count("checks.histories");
            for (reader, (_, read)) in self.board.read.borrow().iter().filter(|(_, (of, _))| *of == partition) {
                check_read(read, &stored).with_context(|| format!("reader {reader} of partition {partition}"))?;
                count("checks.readers");
            }
            self.board.stored.set(self.board.stored.get() + stored.len() as u64);
        }
        let (earliest, stored) = self.stored(&client, LEDGER, 0).await?;
        ensure!(earliest == 0, "{LEDGER} begins at {earliest}");
        self.board.ledger.borrow().check(&stored)?;
        let (earliest, stored) = loop {
            match self.stored(&client, TRAIL, 0).await {
                // Retention may move the beginning between two reads.
                Err(error) if since.elapsed() < RECOVERY && format!("{error:#}").contains("offset") => {
                    note("checker", &format!("{error:#}"));
                    sleep(LOOK * 10).await;
                }
                read => break read?,
            }
        };
        self.board.trail.borrow().check(earliest, &stored)?;
        self.board.positions.borrow().check()?;
        for (topic, partitions) in [(ORDERS, PARTITIONS), (LEDGER, 1)] {
            self.same_everywhere(&client, topic, partitions, since).await?;
        }
        self.board.checked.set(true);
        Ok(())
    }

    /// Everything in a partition, and where it begins.
    async fn stored(&self, client: &Client, topic: &str, number: i32) -> anyhow::Result<(i64, Vec<StoredRecord>)> {
        let partition = Partition::new(topic, number);
        let offsets = client.list_offsets(&partition, None).await.context("no end of the partition is told")?;
        let mut consumer = client.consumer(partition, ConsumerConfig::default().until(offsets.next));
        let mut stored = Vec::new();
        while let Some(record) = timeout(RECOVERY, consumer.next()).await.context("reading does not end")?? {
            stored.push(record);
        }
        let earliest = stored.first().map_or(offsets.next, |first: &StoredRecord| first.offset);
        ensure!(
            stored.len() as i64 == offsets.next - earliest,
            "{} of {earliest}..{} are read from {topic}/{number}",
            stored.len(),
            offsets.next
        );
        note("checker", &format!("{topic}/{number} holds {} records from {earliest} on", stored.len()));
        count_many("checks.records", stored.len() as u64);
        Ok((earliest, stored))
    }

    /// The node that was to leave has left.
    async fn settled(&self, client: &Client, since: Instant) -> anyhow::Result<()> {
        loop {
            let why = match client.cluster_status().await {
                Ok(status) => match status.operations.iter().find(|operation| operation.kind == "decommission") {
                    Some(operation) if operation.state == "done" => return Ok(()),
                    Some(operation) => {
                        format!("{}: {}, {} left", operation.state, operation.reason, operation.remaining)
                    }
                    None => "no such operation".into(),
                },
                Err(error) => error.to_string(),
            };
            ensure!(since.elapsed() < RECOVERY, "the decommission does not end: {why}");
            sleep(LOOK * 10).await;
        }
    }

    /// Replicas hold the same, by the hashes of what is on their disks.
    async fn same_everywhere(
        &self,
        client: &Client,
        topic: &str,
        partitions: i32,
        since: Instant,
    ) -> anyhow::Result<()> {
        loop {
            let mut differences = Vec::new();
            let mut seen = 0;
            match client.verify(topic).await {
                Ok(mut answers) => loop {
                    match answers.message().await {
                        Ok(Some(answer)) if answer.difference.is_empty() && answer.replicas.len() == 3 => seen += 1,
                        Ok(Some(answer)) => differences.push(format!("{answer:?}")),
                        Ok(None) => break,
                        Err(status) => {
                            differences.push(status.to_string());
                            break;
                        }
                    }
                },
                Err(error) => differences.push(error.to_string()),
            }
            if differences.is_empty() && seen == partitions {
                count("checks.replicas alike");
                return Ok(());
            }
            ensure!(since.elapsed() < RECOVERY, "replicas of {topic} differ: {}", differences.join("; "));
            sleep(LOOK * 10).await;
        }
    }
}
