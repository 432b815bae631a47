//! Stored entries that have fewer records than they take offsets, as compaction and erasure leave them: every reader passes the
//! holes, and appends continue behind them.

use std::path::Path;
use std::sync::Arc;

use crate::serving::Node;
use crate::support::{config, keyed, put, put_if, start, target};
use bytes::Bytes;
use chronicle_client::{Client, ConsumerConfig, Partition};
use chronicle_log::disk::RealDisk;
use chronicle_log::{Entry, EntryKind, Log, LogConfig, Store, StoreConfig};
use chronicle_node::broker::Route;
use chronicle_node::model::{Expectation, Fetch, Position, Reason};
use chronicle_records::{BatchBuilder, Compression};

/// Time of the record at an offset.
const fn time(offset: i64) -> i64 {
    // Later than those of the records that the node accepts.
    4_000_000_000_000 + offset
}

fn key(offset: i64) -> String {
    format!("key {offset}")
}

/// A batch that takes the offsets `base..end` and has records at some of them.
fn batch(base: i64, end: i64, kept: &[i64]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::Lz4);
    let mut next = base;
    for &at in kept {
        builder.skip_offsets((at - next) as i32);
        let (key, value) = (key(at), at.to_string());
        builder.push(time(at), Some(key.as_bytes()), Some(value.as_bytes()), []).unwrap();
        next = at + 1;
    }
    builder.skip_offsets((end - next) as i32);
    let mut batch = builder.build().unwrap();
    chronicle_records::patch(&mut batch, base, 1);
    batch.freeze()
}

/// What has a record behind the three that the node accepts itself; the entries take all offsets up to [`END`].
const KEPT: [i64; 8] = [4, 6, 15, 16, 19, 21, 22, 24];
const END: i64 = 30;

fn append(log: &Log, offsets: i64, batches: &[Bytes]) {
    let position = log.position();
    let last = position.last.unwrap();
    let entry = Entry {
        term: last.term,
        leader: last.leader,
        index: position.next_index,
        kind: EntryKind::Data,
        record_count: offsets as u32,
        max_timestamp: time(position.next_offset as i64 + offsets - 1),
        payload: batches.concat().into(),
    };
    log.append(vec![entry], Box::new(|_| {})).unwrap();
    log.flush().unwrap();
}

/// Adds entries with holes to the log of the partition whose last record is `needle`, while no node runs.
fn take_records_out(data: &Path, needle: &[u8]) {
    let store = Store::open(Arc::new(RealDisk), data, StoreConfig::default()).unwrap();
    for id in store.list_logs().unwrap() {
        let log = store.open_log(id, LogConfig::default()).unwrap();
        let entries = log.read(log.position().first_index, u64::MAX, usize::MAX).unwrap();
        if !entries.iter().any(|stored| stored.entry.payload.windows(needle.len()).any(|bytes| bytes == needle)) {
            continue;
        }
        assert_eq!(log.position().next_offset, 3);
        append(&log, 5, &[batch(3, 8, &[4, 6])]);
        append(&log, 4, &[]);
        append(&log, 3, &[batch(12, 15, &[])]);
        // A whole batch is gone between two others.
        append(&log, 6, &[batch(15, 17, &[15, 16]), batch(19, 21, &[19])]);
        append(&log, 7, &[batch(21, 23, &[21, 22]), batch(23, 27, &[24]), batch(27, 28, &[])]);
        append(&log, 2, &[]);
        assert_eq!(log.position().next_offset, END as u64);
    }
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_pass_offsets_without_records_and_appends_continue_behind_them() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    for value in ["a", "b", "the needle"] {
        put(&broker, value).await.unwrap();
    }
    broker.shutdown().await;
    drop(broker);
    take_records_out(&dir.path().join("data"), b"the needle");
    let node = Node::start_with(|config| config.node.data_dir = dir.path().join("data")).await;
    let offsets: Vec<i64> = [0, 1, 2].into_iter().chain(KEPT).collect();
    let at_or_after = |from: i64| offsets.iter().copied().find(|offset| *offset >= from);

    // Fetches, as small as they get and as large as they get, from every offset.
    for from in 0..END {
        for max_bytes in [1, 1 << 20] {
            let mut next = from;
            let mut found = Vec::new();
            while next < END {
                let want = Fetch {
                    target: target("default"),
                    from: Position::Offset(next),
                    max_bytes,
                    max_wait: std::time::Duration::ZERO,
                };
                let fetched = node.broker.fetch(want, Route::Local).await.unwrap();
                assert!(fetched.next_offset > next, "from {next}: {fetched:?}");
                assert_eq!(fetched.batches.is_empty(), next >= 28, "from {next}");
                let (records, after) = fetched.records(None).unwrap();
                found.extend(records.iter().map(|record| record.offset));
                next = after;
            }
            assert_eq!(found, offsets.iter().copied().filter(|at| *at >= from).collect::<Vec<_>>(), "from {from}");
        }
    }

    // By time: the first record at or after it.
    for at in 3..END {
        let found = node.broker.offsets(&target("default"), Some(time(at)), Route::Local).await.unwrap();
        assert_eq!(found.next, END);
        assert_eq!(found.at_timestamp.map(|(offset, _)| offset), at_or_after(at), "at {at}");
    }

    // HTTP: one record, and many.
    let http = reqwest::Client::new();
    for from in 0..END {
        let one = http.get(node.url(&format!("/?offset={from}"))).send().await.unwrap();
        match at_or_after(from) {
            Some(offset) => {
                let read: serde_json::Value = one.json().await.unwrap();
                assert_eq!(read["record"]["offset"], offset, "from {from}: {read}");
            }
            None => assert_eq!(one.status().as_u16(), 404, "from {from}"),
        }
        let many = http.get(node.url(&format!("/v1/topics/default/partitions/0/records?offset={from}")));
        let many: serde_json::Value = many.send().await.unwrap().json().await.unwrap();
        assert!(many["next_offset"].as_i64().unwrap() > from, "from {from}: {many}");
    }

    // The client, up to the end, which has no record.
    let client = Client::connect(node.address.to_string().as_str()).unwrap();
    for from in [0, 3, 5, 7, 8, 13, 17, 20, 25, 29] {
        let until = ConsumerConfig::from_offset(from).until(END);
        let mut consumer = client.consumer(Partition::new("default", 0), until);
        let mut found = Vec::new();
        while let Some(record) = consumer.next().await.unwrap() {
            found.push(record.offset);
        }
        assert_eq!(found, offsets.iter().copied().filter(|at| *at >= from).collect::<Vec<_>>(), "from {from}");
    }

    // Appends go on behind the last offset, and know the versions of keys.
    for at in KEPT {
        let expectation = Expectation::KeyVersion { key: key(at).into(), version: at - 1 };
        let refused = put_if(&node.broker, keyed(&key(at), "new"), expectation).await.unwrap_err();
        assert_eq!(refused.reason, Reason::VersionConflict);
        let current = refused.metadata.iter().find(|(name, _)| name == "current").map(|(_, value)| value.clone());
        assert_eq!(current, Some(at.to_string()));
    }
    let expectation = Expectation::KeyVersion { key: key(24).into(), version: 24 };
    assert_eq!(put_if(&node.broker, keyed(&key(24), "new"), expectation).await.unwrap().base_offset, END);
    let expectation = Expectation::NextOffset(END + 1);
    assert_eq!(put_if(&node.broker, keyed("k", "new"), expectation).await.unwrap().base_offset, END + 1);
    node.stop().await;
}
