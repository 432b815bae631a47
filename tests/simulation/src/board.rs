//! What the clients of a simulated cluster share, and what nothing of the cluster sees.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use chronicle_client::{Client, ClientConfig, ReadFrom};
use chronicle_tests::history::Written;
use chronicle_tests::replica::Stored;
use tokio::time::sleep;

use crate::ledger::LedgerHistory;
use crate::network::connector;
use crate::positions::PositionsHistory;
use crate::trail::TrailHistory;

/// The topic of most writers.
pub(crate) const ORDERS: &str = "orders";
/// Its partitions.
pub(crate) const PARTITIONS: i32 = 2;
/// The topic of one partition for conditional appends.
pub(crate) const LEDGER: &str = "ledger";
/// The topic of one partition of which little is kept.
pub(crate) const TRAIL: &str = "trail";
/// Largest batch that `orders` takes, in bytes.
pub(crate) const ORDER_BYTES_MAX: i32 = 4096;
/// How long the cluster may take to be whole again once nothing is broken any more.
pub(crate) const RECOVERY: Duration = Duration::from_secs(90);
/// Between two looks at the board.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// What the clients tell one another and the plan.
#[derive(Default)]
pub(crate) struct Board {
    /// The topics are there: faults may begin.
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
    /// Clients of the load that have not come to an end.
    pub(crate) busy: Cell<u32>,
    /// By number of the writer.
    pub(crate) written: RefCell<BTreeMap<u32, Written>>,
    /// By number of the reader: partition and what was read of it.
    pub(crate) read: RefCell<BTreeMap<u32, (i32, Vec<Stored>)>>,
    /// Of the topic `ledger`.
    pub(crate) ledger: RefCell<LedgerHistory>,
    /// Of the topic `trail`.
    pub(crate) trail: RefCell<TrailHistory>,
    /// Of the offsets of groups.
    pub(crate) positions: RefCell<PositionsHistory>,
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
    /// Number of writers of `orders`, and of its readers.
    pub(crate) writers: u32,
    /// A writer's pause between two records.
    pub(crate) pace: Duration,
    /// Nodes keep the state of few producers, so that producers lose theirs.
    pub(crate) producers_expire: bool,
    /// Offsets of groups are committed. Their topic has many partitions, so not where a node leaves: all would have to move.
    pub(crate) groups: bool,
}

impl Clients {
    pub(crate) fn client(&self, read_from: ReadFrom, patience: Duration) -> anyhow::Result<Client> {
        self.suspecting(read_from, patience, Duration::from_secs(1))
    }

    /// A client that takes a node for dead that is silent for so long.
    pub(crate) fn suspecting(
        &self,
        read_from: ReadFrom,
        patience: Duration,
        suspect_after: Duration,
    ) -> anyhow::Result<Client> {
        let config = ClientConfig::new(self.servers.clone())
            .connector(connector("client"))
            .read_from(read_from)
            .suspect_after(suspect_after)
            .request_timeout(patience);
        Ok(Client::connect(config)?)
    }

    pub(crate) async fn until(&self, flag: impl Fn(&Board) -> bool) {
        while !flag(&self.board) {
            sleep(LOOK).await;
        }
    }

    /// One client of the load has come to its end.
    pub(crate) fn done(&self) {
        self.board.busy.set(self.board.busy.get() - 1);
    }
}

/// Says who wrote it, and as its how-manieth, in the format of the checker; with some bytes behind it.
pub(crate) fn value(writer: u32, sequence: u64, more: usize) -> Bytes {
    let mut value = BytesMut::new();
    value.put_u32(writer);
    value.put_u64(sequence);
    value.put_bytes(b'.', more);
    value.freeze()
}

/// The writer and the number in a [`value`].
pub(crate) fn stamp(value: Option<&Bytes>) -> Option<(u32, u64)> {
    let value = value?;
    let writer = u32::from_be_bytes(*value.first_chunk()?);
    Some((writer, u64::from_be_bytes(*value.get(4..)?.first_chunk()?)))
}
