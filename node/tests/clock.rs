//! A wall clock that jumps: timestamps follow it, and nothing else does.

#[path = "node/support/mod.rs"]
mod support;

use std::cell::Cell;
use std::time::Duration;

use chronicle_node::broker::{Broker, Route};
use chronicle_node::groups::{Commit, CommittedOffset, Groups, Heartbeat};
use chronicle_node::host::{Simulated, simulate};
use chronicle_node::model::{Position, SettingsChange};
use support::*;

const HOUR: Duration = Duration::from_secs(3600);
const START: Duration = Duration::from_secs(1_790_000_000);

thread_local! {
    static WALL: Cell<Duration> = const { Cell::new(START) };
}

/// From now on it is this late on the test's thread, where the API runs.
fn set_clock(wall: Duration) {
    WALL.set(wall);
    simulate(Simulated { since_epoch: || WALL.get(), blocking_delay: || Duration::ZERO });
}

async fn timestamps(broker: &Broker, end: i64) -> Vec<i64> {
    let mut found = Vec::new();
    while (found.len() as i64) < end {
        let fetched = fetch(broker, Position::Offset(found.len() as i64), 0).await.unwrap();
        let (records, _) = fetched.records(None).unwrap();
        for record in records {
            assert_eq!(record.offset, found.len() as i64, "offsets are dense");
            found.push(record.timestamp);
        }
    }
    found
}

async fn until_expired(broker: &Broker, from: i64) -> i64 {
    loop {
        let earliest = broker.offsets(&target("default"), None, Route::Local).await.unwrap().earliest;
        if earliest > from {
            return earliest;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_clock_that_goes_back_deletes_no_record_and_age_counts_from_record_timestamps() {
    set_clock(START);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.partitions.retention_check_ms = 20;
    let broker = start(config).await;
    let settings = SettingsChange {
        segment_bytes: Some(65_536),
        retention_ms: Some(HOUR.as_millis() as i64),
        ..SettingsChange::default()
    };
    broker.alter_topic("default", 0, settings).await.unwrap();
    let (id, epoch) = broker.init_producer().await.unwrap();
    put_as(&broker, id, epoch, 0, "before").await.unwrap();
    for _ in 0..99 {
        put(&broker, vec![1; 1000]).await.unwrap();
    }
    set_clock(START - 24 * HOUR);
    for _ in 0..99 {
        put(&broker, vec![2; 1000]).await.unwrap();
    }
    // A producer is known by its id and numbers, not by the time.
    assert!(put_as(&broker, id, epoch, 0, "before").await.unwrap().duplicate);
    assert_eq!(put_as(&broker, id, epoch, 1, "after").await.unwrap().base_offset, 199);
    let (early, late) = ((START - 24 * HOUR).as_millis() as i64, START.as_millis() as i64);
    assert_eq!(timestamps(&broker, 200).await, [vec![late; 100], vec![early; 100]].concat());
    // The first record at or after a time is the first by offset.
    let target = target("default");
    assert_eq!(broker.offsets(&target, Some(early), Route::Local).await.unwrap().at_timestamp, Some((0, late)));
    assert_eq!(broker.offsets(&target, Some(late + 1), Route::Local).await.unwrap().at_timestamp, None);

    // Back to where it was, and on: what was written first is as old as it says, what was written under the wrong clock goes
    // with it and not before it.
    set_clock(START + HOUR / 2);
    for _ in 0..100 {
        put(&broker, vec![3; 1000]).await.unwrap();
    }
    assert_eq!(broker.offsets(&target, None, Route::Local).await.unwrap().earliest, 0);
    set_clock(START + HOUR + HOUR / 4);
    let earliest = until_expired(&broker, 100).await;
    assert!(earliest <= 200, "the newest hundred are younger than an hour: {earliest}");
    assert_eq!(broker.offsets(&target, None, Route::Local).await.unwrap().next, 300);
    broker.shutdown().await;
}

#[tokio::test]
async fn members_of_a_group_outlive_a_clock_that_jumps_and_no_lag_is_negative() {
    set_clock(START);
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let groups = Groups::start((*broker).clone());
    put(&broker, "one").await.unwrap();
    let join = Heartbeat {
        group: "g".into(),
        topics: vec!["default".into()],
        session_timeout_ms: 600_000,
        ..Heartbeat::default()
    };
    let mut member = groups.heartbeat(join.clone()).await.unwrap();
    for wall in [START + 48 * HOUR, START - 48 * HOUR, Duration::ZERO, START] {
        set_clock(wall);
        let beat = Heartbeat {
            member_id: member.member_id.clone(),
            generation: member.generation,
            owned: member.assigned.clone(),
            ..join.clone()
        };
        member = groups.heartbeat(beat).await.unwrap();
        let offset = CommittedOffset { topic: "default".into(), partition: 0, offset: 0, metadata: String::new() };
        let (member_id, generation) = (member.member_id.clone(), member.generation);
        groups.commit(Commit { group: "g".into(), member_id, generation, offsets: vec![offset] }).await.unwrap();
        let described = groups.describe("g").await.unwrap();
        assert_eq!(described.members.len(), 1);
        let lag = &described.partitions[0];
        let late = wall.saturating_sub(START).as_millis() as i64;
        assert_eq!((lag.lag_records, lag.lag_ms), (1, late), "at {wall:?}");
    }
    groups.shutdown().await;
    broker.shutdown().await;
}
