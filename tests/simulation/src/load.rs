//! The clients of a simulated cluster: writers, readers, an operator, and the one that looks at the end.
//!
//! All run on hosts of their own and share [`Board`], which nothing of the cluster sees.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use chronicle_client::{
    Client, ClientConfig, ClientError, ConsumerConfig, Delivery, Partition, ProducerConfig, ReadFrom, Record,
};
use chronicle_proto::v1;
use chronicle_tests::history::{History, Outcome, Written, check_read};
use chronicle_tests::replica::Stored;
use futures::FutureExt;
use tokio::time::{Instant, sleep, timeout};

use crate::network::connector;
use crate::trace::note;

/// The topic of all writers.
const TOPIC: &str = "orders";
/// Its partitions.
pub(crate) const PARTITIONS: i32 = 2;
/// Records that a writer leaves unanswered.
const WINDOW: usize = 16;
/// How long the cluster may take to be whole again once nothing is broken any more.
const RECOVERY: Duration = Duration::from_secs(90);
/// Between two looks at the board.
const LOOK: Duration = Duration::from_millis(50);

/// What the clients tell one another and the plan.
#[derive(Default)]
pub(crate) struct Board {
    /// The topic is there: faults may begin.
    pub(crate) ready: Cell<bool>,
    /// Writers and readers are to come to an end.
    pub(crate) stop: Cell<bool>,
    /// Nothing is broken any more.
    pub(crate) healed: Cell<bool>,
    /// Set once by the plan: this node is to leave the cluster.
    pub(crate) leaving: RefCell<Option<String>>,
    /// The cluster has agreed to that.
    pub(crate) left: Cell<bool>,
    /// Everything was checked.
    pub(crate) checked: Cell<bool>,
    /// By number of the writer.
    written: RefCell<BTreeMap<u32, Written>>,
    /// By number of the reader: partition and what was read of it.
    read: RefCell<BTreeMap<u32, (i32, Vec<Stored>)>>,
    /// Acknowledged records.
    pub(crate) acknowledged: Cell<u64>,
    /// Stored records.
    pub(crate) stored: Cell<u64>,
}

/// The clients' view of the cluster.
#[derive(Clone)]
pub(crate) struct Clients {
    /// Where they meet.
    pub(crate) board: Rc<Board>,
    /// `HOST:PORT` of nodes.
    pub(crate) servers: String,
    /// Number of writers, and of readers.
    pub(crate) writers: u32,
    /// A writer's pause between two records.
    pub(crate) pace: Duration,
}

impl Clients {
    fn client(&self, read_from: ReadFrom) -> anyhow::Result<Client> {
        let config = ClientConfig::new(self.servers.clone())
            .connector(connector("client"))
            .read_from(read_from)
            .request_timeout(Duration::from_secs(20));
        Ok(Client::connect(config)?)
    }

    async fn until(&self, flag: impl Fn(&Board) -> bool) {
        while !flag(&self.board) {
            sleep(LOOK).await;
        }
    }

    /// Creates the topic, and begins the decommission that the plan wants.
    pub(crate) async fn operator(self) -> anyhow::Result<()> {
        let client = self.client(ReadFrom::Leader)?;
        let request = v1::CreateTopicRequest {
            name: TOPIC.into(),
            partitions: PARTITIONS,
            replication_factor: 3,
            settings: None,
            if_not_exists: true,
        };
        let until = Instant::now() + RECOVERY;
        // Fewer nodes than replicas are refused: all must have met.
        while let Err(error) = client.create_topic(request.clone()).await {
            ensure!(Instant::now() < until, "the topic is not created: {error}");
            sleep(LOOK).await;
        }
        note("operator", "topic created");
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
        let client = self.client(ReadFrom::Leader)?;
        let partition = Partition::new(TOPIC, i32::try_from(number)? % PARTITIONS);
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
            match current.send(Record::value(value(number, sequence as u64))).await {
                Ok(delivery) => {
                    written.outcomes.push(Outcome::Unknown);
                    sent.push_back((sequence, delivery));
                }
                Err(error) => {
                    note(&who, &format!("the producer failed: {error}"));
                    while let Some((sequence, delivery)) = sent.pop_front() {
                        self.answered(&who, &mut written, sequence, delivery.await);
                    }
                    current = producer();
                }
            }
            sleep(self.pace).await;
            while let Some((sequence, delivery)) = sent.front_mut() {
                let sequence = *sequence;
                let answer = delivery.now_or_never();
                let Some(answer) = answer else { break };
                sent.pop_front();
                self.answered(&who, &mut written, sequence, answer);
            }
            while sent.len() >= WINDOW && !self.board.stop.get() {
                let (sequence, delivery) = sent.front_mut().context("the window is not empty")?;
                let sequence = *sequence;
                if let Ok(answer) = timeout(LOOK, delivery).await {
                    sent.pop_front();
                    self.answered(&who, &mut written, sequence, answer);
                }
            }
        }
        while let Some((sequence, delivery)) = sent.pop_front() {
            self.answered(&who, &mut written, sequence, delivery.await);
        }
        drop(current);
        note(&who, &format!("done: {} records", written.outcomes.len()));
        self.board.written.borrow_mut().insert(number, written);
        Ok(())
    }

    fn answered(&self, who: &str, written: &mut Written, sequence: usize, answer: Result<i64, ClientError>) {
        written.outcomes[sequence] = match answer {
            Ok(offset) => {
                self.board.acknowledged.set(self.board.acknowledged.get() + 1);
                note(who, &format!("{sequence} is at {offset}"));
                Outcome::Acknowledged(offset)
            }
            Err(error) => {
                note(who, &format!("{sequence} failed: {error}"));
                if error.not_accepted() { Outcome::Refused } else { Outcome::Unknown }
            }
        };
    }

    /// Follows a partition from its beginning, on whatever replica answers; what it was given is checked at the end.
    pub(crate) async fn reader(self, number: u32) -> anyhow::Result<()> {
        self.until(|board| board.ready.get()).await;
        let read_from = if number % 4 < 2 { ReadFrom::Followers } else { ReadFrom::Leader };
        let client = self.client(read_from)?;
        let partition = Partition::new(TOPIC, i32::try_from(number)? % PARTITIONS);
        let mut consumer = client.consumer(partition.clone(), ConsumerConfig::default());
        let mut read = Vec::new();
        while !self.board.stop.get() {
            let Ok(batch) = timeout(LOOK, consumer.next_batch()).await else { continue };
            match batch {
                Ok(batch) => {
                    for record in batch {
                        ensure!(
                            record.offset == read.len() as i64,
                            "reader {number} was given offset {} where {} is due",
                            record.offset,
                            read.len()
                        );
                        read.push(Stored { offset: record.offset, key: record.key, value: record.value });
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
        Ok(())
    }

    /// Once nothing is broken any more: everything works again, and what is stored is what clients were told.
    pub(crate) async fn checker(self) -> anyhow::Result<()> {
        self.until(|board| board.healed.get()).await;
        let since = Instant::now();
        let all = self.writers as usize;
        while self.board.written.borrow().len() < all || self.board.read.borrow().len() < all {
            ensure!(since.elapsed() < RECOVERY, "writers and readers do not come to an end");
            sleep(LOOK).await;
        }
        // One of the addresses may be that of the node that has left: it must not answer from what it knew last.
        let client = self.client(ReadFrom::Leader)?;
        if self.board.left.get() {
            self.settled(&client, since).await?;
        }
        let history =
            History { writers: std::mem::take(&mut *self.board.written.borrow_mut()).into_values().collect() };
        for partition in 0..PARTITIONS {
            let stored = self.stored(&client, partition).await?;
            history.check(partition, &stored)?;
            for (reader, (_, read)) in self.board.read.borrow().iter().filter(|(_, (of, _))| *of == partition) {
                check_read(read, &stored).with_context(|| format!("reader {reader} of partition {partition}"))?;
            }
            note("checker", &format!("partition {partition} holds {} records", stored.len()));
            self.board.stored.set(self.board.stored.get() + stored.len() as u64);
        }
        self.same_everywhere(&client, since).await?;
        self.board.checked.set(true);
        Ok(())
    }

    /// Everything in a partition.
    async fn stored(&self, client: &Client, number: i32) -> anyhow::Result<Vec<Stored>> {
        let partition = Partition::new(TOPIC, number);
        let end = client.list_offsets(&partition, None).await.context("no end of the partition is told")?.next;
        let mut consumer = client.consumer(partition, ConsumerConfig::default().until(end));
        let mut stored = Vec::new();
        while let Some(record) = timeout(RECOVERY, consumer.next()).await.context("reading does not end")?? {
            stored.push(Stored { offset: record.offset, key: record.key, value: record.value });
        }
        ensure!(stored.len() as i64 == end, "{} of {end} records are read from partition {number}", stored.len());
        Ok(stored)
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
    async fn same_everywhere(&self, client: &Client, since: Instant) -> anyhow::Result<()> {
        loop {
            let mut differences = Vec::new();
            let mut seen = 0;
            match client.verify(TOPIC).await {
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
            if differences.is_empty() && seen == PARTITIONS {
                return Ok(());
            }
            ensure!(since.elapsed() < RECOVERY, "replicas differ: {}", differences.join("; "));
            sleep(LOOK * 10).await;
        }
    }
}

/// Says who wrote it, and as its how-manieth; the checker's format.
fn value(writer: u32, sequence: u64) -> Bytes {
    let mut value = BytesMut::new();
    value.put_u32(writer);
    value.put_u64(sequence);
    // Sizes differ, so that entries and segments do.
    value.put_bytes(b'.', (sequence % 97) as usize * 3);
    value.freeze()
}
