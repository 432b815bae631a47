//! What an entry keeps reserved while the leader's disk does not have it.

use std::sync::Arc;
use std::time::Duration;

use chronicle_log::disk::{DiskOperation, Fault, FaultRule, FaultyDisk, RealDisk};
use chronicle_log::{LogConfig, LogId, Store, StoreConfig};
use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::tests::{Journal, LOG, lead, proposal, started};
use super::{RaftGroup, Reservation, Transport};
use crate::peers::AskError;

/// Other nodes that grant every vote and acknowledge every entry.
struct Acknowledge;

impl Transport for Acknowledge {
    fn ask(&self, _: u64, _: LogId, message: Message, _: Duration) -> BoxFuture<'_, Result<Message, AskError>> {
        let answer = match message {
            Message::Vote(proto::VoteRequest { vote, .. }) => {
                Message::VoteDone(proto::VoteResponse { vote, granted: true, ..Default::default() })
            }
            Message::Append(_) => Message::AppendDone(proto::AppendResponse {
                outcome: Some(proto::append_response::Outcome::Success(true)),
            }),
            other => panic!("not expected: {other:?}"),
        };
        Box::pin(async move { Ok(answer) })
    }

    fn alive(&self, _: u64) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_commits_without_the_leaders_disk_keeps_its_reservation_until_the_flush() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open(Arc::new(disk.clone()), dir.path(), StoreConfig::default()).unwrap();
    let log = store.open_log(LOG, LogConfig::default()).unwrap();
    let start = started(&store, &log, 1, &[1, 2, 3], Arc::new(Acknowledge));
    let group = RaftGroup::start(start, Journal::default()).await.unwrap();
    let leader = lead(&group).await;
    let hang = disk.add(FaultRule::new(DiskOperation::Sync, Fault::Hang).path("/logs/"));
    let (reserved, mut released) = oneshot::channel::<()>();
    let (tx, rx) = oneshot::channel();
    let proposal = proposal("a", Some(Reservation::new(reserved)));
    group.propose(leader, proposal, move |result| tx.send(result).unwrap()).await.unwrap();
    assert_eq!(rx.await.unwrap().unwrap(), "a", "two of three nodes have it");
    let held = released.try_recv();
    // Before a test that fails waits for the disk.
    disk.remove(hang);
    assert_eq!(held, Err(oneshot::error::TryRecvError::Empty));
    assert!(released.await.is_err(), "dropped without a message");
    assert_eq!(log.position().durable_index, log.position().last.map(|last| last.index));
    group.shutdown().await;
    log.close().unwrap();
    store.close().unwrap();
}
