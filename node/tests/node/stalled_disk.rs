//! A disk that hangs under one of three nodes: memory stays bounded, another node leads, and nothing acknowledged is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chronicle_log::disk::{Disk, DiskOperation, Fault, FaultRule, FaultyDisk, RealDisk};
use chronicle_node::broker::{Broker, Readiness, Route};
use chronicle_node::model::{Fetch, NewTopic, Position};

use crate::serving::Node;
use crate::support::{append, record, target};

/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Heals the disk when a test ends or fails: its node cannot stop before.
struct Hanging<'a>(&'a FaultyDisk);

impl<'a> Hanging<'a> {
    fn new(disk: &'a FaultyDisk) -> Self {
        disk.add(FaultRule::new(DiskOperation::Sync, Fault::Hang));
        Self(disk)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.heal();
    }
}

/// The number of the node that leads partition 0 of `default`, as `from` sees it.
async fn leader(nodes: &[Node], from: usize) -> Option<usize> {
    let (_, partitions) = nodes[from].broker.describe_topic("default").await.ok()?;
    nodes.iter().position(|node| node.address.to_string() == partitions[0].leader)
}

/// Every value of `default`, by the leader; `None` when it cannot be asked now.
async fn values(broker: &Broker) -> Option<BTreeSet<String>> {
    let offsets = broker.offsets(&target("default"), None, Route::Leader).await.ok()?;
    let (mut next, mut values) = (offsets.earliest, BTreeSet::new());
    while next < offsets.next {
        let from = Position::Offset(next);
        let request = Fetch { target: target("default"), from, max_bytes: 0, max_wait: Duration::ZERO };
        let fetched = broker.fetch(request, Route::Leader).await.ok()?;
        let (records, _) = fetched.records(None).ok()?;
        values.extend(records.into_iter().filter_map(|record| String::from_utf8(record.value?.to_vec()).ok()));
        next = fetched.next_offset;
    }
    Some(values)
}

/// Waits until a condition holds.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let reached = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(reached.await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_hangs_is_not_ready_and_another_node_leads() {
    let disks: Vec<FaultyDisk> = (0..3).map(|_| FaultyDisk::new(Arc::new(RealDisk))).collect();
    let shared = disks.iter().map(|disk| Arc::new(disk.clone()) as Arc<dyn Disk>).collect();
    let nodes = Node::start_cluster(shared, |config| config.storage.stall_ms = 500).await;
    // One node may have created the default topic already.
    let _ = nodes[0].broker.create_topic(NewTopic { name: "default".into(), ..NewTopic::default() }).await;
    let put = async |from: usize, value: String| {
        let request = append(vec![record(value)]);
        tokio::time::timeout(Duration::from_secs(5), nodes[from].broker.produce(request, Route::Leader)).await
    };
    until("the first append", async || matches!(put(0, "first".into()).await, Ok(Ok(_)))).await;
    let old = leader(&nodes, 0).await.expect("a leader is known");
    let other = (old + 1) % nodes.len();

    let hanging = Hanging::new(&disks[old]);
    let mut acknowledged = BTreeSet::new();
    let mut sent = 0;
    // While the old leader's disk hangs, a majority without it commits; then another node leads.
    let moved = tokio::time::timeout(PATIENCE, async {
        while leader(&nodes, other).await.is_none_or(|leader| leader == old) {
            sent += 1;
            let value = format!("during {sent}");
            if let Ok(Ok(_)) = put(other, value.clone()).await {
                acknowledged.insert(value);
            }
        }
    });
    assert!(moved.await.is_ok(), "node {old} still leads");
    match nodes[old].broker.readiness() {
        Readiness::NotReady(why) => assert!(why.contains("storage.stall-ms"), "{why}"),
        Readiness::Ready => panic!("ready with a disk that hangs"),
    }
    assert!(matches!(nodes[other].broker.readiness(), Readiness::Ready));
    until("an append to the new leader", async || matches!(put(other, "after".into()).await, Ok(Ok(_)))).await;

    drop(hanging);
    until("ready again", async || matches!(nodes[old].broker.readiness(), Readiness::Ready)).await;
    until("every acknowledged record", async || {
        values(&nodes[other].broker).await.is_some_and(|values| acknowledged.is_subset(&values))
    })
    .await;
    for node in nodes {
        node.stop().await;
    }
}
