//! The broker on a real disk: appends, reads, idempotence, expectations, topics, sleep, retention, restart.

use std::sync::Arc;
use std::time::Duration;

use crate::support::*;
use bytes::Bytes;
use chronicle_node::broker::{Broker, Route};
use chronicle_node::model::{
    Expectation, NewTopic, Position, Produce, ProducePayload, ProducerIdentity, Reason, SettingsChange, TopicPartition,
};
use chronicle_records::{BatchBuilder, Compression};

#[tokio::test(flavor = "multi_thread")]
async fn records_get_dense_offsets_and_come_back_byte_for_byte_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let mut expected = Vec::new();
    for (i, compression) in
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
            .into_iter()
            .enumerate()
    {
        let mut records = Vec::new();
        for j in 0..10usize {
            let value = Bytes::from(vec![(i * 10 + j) as u8; j * 100]);
            let mut record = keyed("k", "");
            record.value = Some(value.clone());
            record.headers = vec![("h".into(), Some(Bytes::from_static(b"1"))), ("h".into(), None)];
            record.timestamp_ms = Some(1_000 + j as i64);
            expected.push(value);
            records.push(record);
        }
        let request = Produce { payload: ProducePayload::Records { records, compression }, ..append(vec![]) };
        let produced = broker.produce(request, Route::Local).await.unwrap();
        assert_eq!((produced.base_offset, produced.record_count), (i as i64 * 10, 10));
    }
    assert_eq!(all_values(&broker).await, expected);
    broker.shutdown().await;

    let broker = start(config(dir.path())).await;
    assert_eq!(all_values(&broker).await, expected);
    let (records, next) = fetch(&broker, Position::Offset(13), 0).await.unwrap().records(Some(2)).unwrap();
    assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), [13, 14]);
    assert_eq!(next, 15);
    assert_eq!(records[0].timestamp, 1_003);
    assert_eq!(records[0].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(records[0].headers.len(), 2);
    assert_eq!(put(&broker, "more").await.unwrap().base_offset, 50);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_appends_are_each_stored_once_at_the_returned_offset() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let mut tasks = Vec::new();
    for producer in 0..32 {
        let broker = broker.clone();
        tasks.push(tokio::spawn(async move {
            let mut told = Vec::new();
            for i in 0..20 {
                let value = format!("{producer}-{i}");
                told.push((put(&broker, value.clone()).await.unwrap().base_offset, value));
            }
            told
        }));
    }
    let mut told: Vec<(i64, String)> = Vec::new();
    for task in tasks {
        told.extend(task.await.unwrap());
    }
    told.sort();
    let stored: Vec<(i64, String)> = all_values(&broker)
        .await
        .into_iter()
        .enumerate()
        .map(|(offset, value)| (offset as i64, String::from_utf8(value.to_vec()).unwrap()))
        .collect();
    assert_eq!(stored, told);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_producer_may_repeat_itself_even_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let (id, epoch) = broker.init_producer().await.unwrap();
    assert_eq!(put_as(&broker, id, epoch, 0, "a").await.unwrap().base_offset, 0);
    put(&broker, "somebody else").await.unwrap();
    assert_eq!(put_as(&broker, id, epoch, 1, "b").await.unwrap().base_offset, 2);
    let again = put_as(&broker, id, epoch, 0, "a").await.unwrap();
    assert!(again.duplicate);
    assert_eq!(again.base_offset, 0);
    let gap = put_as(&broker, id, epoch, 5, "x").await.unwrap_err();
    assert_eq!((gap.reason, gap.value("expected")), (Reason::OutOfOrderSequence, Some("2")));
    broker.shutdown().await;

    let broker = start(config(dir.path())).await;
    assert!(put_as(&broker, id, epoch, 1, "b").await.unwrap().duplicate);
    assert_eq!(put_as(&broker, id, epoch + 1, 0, "c").await.unwrap().base_offset, 3);
    let old = put_as(&broker, id, epoch, 2, "x").await.unwrap_err();
    assert_eq!(old.reason, Reason::ProducerFenced);
    let (other, _) = broker.init_producer().await.unwrap();
    assert_ne!(other, id);
    assert_eq!(all_values(&broker).await, ["a", "somebody else", "b", "c"]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_the_partition_does_not_know_begins_at_0() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.partitions.producers_max = 1;
    config.partitions.producer_keep_ms = 1;
    let broker = start(config).await;
    let (id, epoch) = broker.init_producer().await.unwrap();
    // The first request was refused, and the second was sent before the client had that answer.
    let mut first = append(vec![record("first")]);
    first.producer = Some(ProducerIdentity { producer_id: id, epoch, sequence: 0 });
    first.expectation = Some(Expectation::NextOffset(7));
    assert_eq!(broker.produce(first, Route::Local).await.unwrap_err().reason, Reason::VersionConflict);
    let second = put_as(&broker, id, epoch, 1, "second").await.unwrap_err();
    assert_eq!((second.reason, second.value("expected")), (Reason::OutOfOrderSequence, Some("0")));
    for sequence in 0..2 {
        put_as(&broker, id, epoch, sequence, "stored").await.unwrap();
    }
    // Another producer takes its place once it has been idle for a millisecond. It is refused, and comes back with the next epoch.
    let (other, _) = broker.init_producer().await.unwrap();
    while let Err(error) = put_as(&broker, other, 0, 0, "other").await {
        assert_eq!(error.reason, Reason::Overloaded);
    }
    let evicted = put_as(&broker, id, epoch, 2, "late").await.unwrap_err();
    assert_eq!((evicted.reason, evicted.value("expected")), (Reason::OutOfOrderSequence, Some("0")));
    while let Err(error) = put_as(&broker, id, epoch + 1, 0, "late").await {
        assert_eq!(error.reason, Reason::Overloaded);
    }
    assert_eq!(all_values(&broker).await, ["stored", "stored", "other", "late"]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_may_still_repeat_a_request_is_not_forgotten_for_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.partitions.producers_max = 1;
    let broker = start(config.clone()).await;
    let (id, epoch) = broker.init_producer().await.unwrap();
    put_as(&broker, id, epoch, 0, "stored").await.unwrap();
    let (other, _) = broker.init_producer().await.unwrap();
    let refused = put_as(&broker, other, 0, 0, "other").await.unwrap_err();
    assert_eq!(refused.reason, Reason::Overloaded, "{refused}");
    assert!(put_as(&broker, id, epoch, 0, "stored").await.unwrap().duplicate);
    broker.shutdown().await;
    // A restart forgets the times, not the producers.
    let broker = start(config).await;
    assert_eq!(put_as(&broker, other, 0, 0, "other").await.unwrap_err().reason, Reason::Overloaded);
    assert!(put_as(&broker, id, epoch, 0, "stored").await.unwrap().duplicate);
    assert_eq!(all_values(&broker).await, ["stored"]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_is_used_again_for_other_records_is_not_called_a_duplicate() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let (id, epoch) = broker.init_producer().await.unwrap();
    for (sequence, value) in [(0, "a"), (1, "b"), (2, "c")] {
        put_as(&broker, id, epoch, sequence, value).await.unwrap();
    }
    let refused = put_as(&broker, id, epoch, 1, "of another process").await.unwrap_err();
    assert_eq!((refused.reason, refused.value("expected")), (Reason::OutOfOrderSequence, None), "{refused}");
    let repeated = put_as(&broker, id, epoch, 1, "b").await.unwrap();
    assert_eq!((repeated.base_offset, repeated.duplicate), (1, true));
    assert_eq!(all_values(&broker).await, ["a", "b", "c"]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expected_version_is_checked_in_log_order() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let version =
        |key: &'static str, version| Expectation::KeyVersion { key: Bytes::from_static(key.as_bytes()), version };

    put_if(&broker, record("0"), Expectation::NextOffset(0)).await.unwrap();
    let conflict = put_if(&broker, record("x"), Expectation::NextOffset(0)).await.unwrap_err();
    assert_eq!((conflict.reason, conflict.value("current")), (Reason::VersionConflict, Some("1")));

    put(&broker, "1").await.unwrap();
    assert_eq!(put_if(&broker, keyed("k", "a"), version("k", -1)).await.unwrap().base_offset, 2);
    let conflict = put_if(&broker, keyed("k", "x"), version("k", -1)).await.unwrap_err();
    assert_eq!(conflict.value("current"), Some("2"));
    assert_eq!(put_if(&broker, keyed("k", "b"), version("k", 2)).await.unwrap().base_offset, 3);
    put_if(&broker, keyed("other", "c"), version("other", -1)).await.unwrap();
    assert_eq!(put_if(&broker, keyed("k", "d"), version("k", 3)).await.unwrap().base_offset, 5);
    broker.shutdown().await;

    // The index is soft state: after a restart it is read from the log.
    let broker = start(config(dir.path())).await;
    let conflict = put_if(&broker, keyed("k", "x"), version("k", 3)).await.unwrap_err();
    assert_eq!(conflict.value("current"), Some("5"));
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_racing_conditional_appends_exactly_one_wins_each_version() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    for round in 0..10 {
        let racers = (0..16).map(|i| {
            let broker = broker.clone();
            async move { put_if(&broker, record(format!("{round}-{i}")), Expectation::NextOffset(round)).await }
        });
        let results = futures::future::join_all(racers).await;
        let winners = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(winners, 1, "round {round}: {results:?}");
        for error in results.into_iter().filter_map(Result::err) {
            assert_eq!(error.value("current"), Some((round + 1).to_string().as_str()));
        }
    }
    assert_eq!(all_values(&broker).await.len(), 10);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_outside_the_log_return_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let empty = fetch(&broker, Position::Offset(0), 0).await.unwrap();
    assert_eq!((empty.batches.len(), empty.high_watermark), (0, 0));
    put(&broker, "a").await.unwrap();
    let at_end = fetch(&broker, Position::Offset(1), 0).await.unwrap();
    assert_eq!((at_end.batches.len(), at_end.next_offset, at_end.high_watermark), (0, 1, 1));
    for offset in [2, 1_000_000] {
        let error = fetch(&broker, Position::Offset(offset), 0).await.unwrap_err();
        assert_eq!(error.reason, Reason::OffsetOutOfRange);
        assert_eq!((error.value("earliest"), error.value("next")), (Some("0"), Some("1")));
    }
    // Beyond the end, waiting does not help.
    let beyond = fetch(&broker, Position::Offset(2), 10_000).await.unwrap_err();
    assert_eq!(beyond.reason, Reason::OffsetOutOfRange);
    let negative = fetch(&broker, Position::Offset(-1), 0).await.unwrap_err();
    assert_eq!(negative.reason, Reason::InvalidRequest);
    let unknown = fetch_topic(&broker, "nope", Position::Earliest, 0).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::UnknownTopic);
    let target = TopicPartition { topic: "default".into(), partition: 1 };
    assert_eq!(broker.offsets(&target, None, Route::Local).await.unwrap_err().reason, Reason::UnknownPartition);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_ends_with_the_record_and_empty_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let waiting = {
        let broker = broker.clone();
        tokio::spawn(async move { fetch(&broker, Position::Latest, 60_000).await })
    };
    let nothing = fetch(&broker, Position::Latest, 1).await.unwrap();
    assert!(nothing.batches.is_empty());
    put(&broker, "woken").await.unwrap();
    // The poll resolved "latest" before or after the append; only the first can see it.
    if let Ok(found) = tokio::time::timeout(Duration::from_secs(1), waiting).await {
        let (records, _) = found.unwrap().unwrap().records(None).unwrap();
        assert_eq!(records[0].value.as_deref(), Some(&b"woken"[..]));
    }
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_found_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    for i in 0..50 {
        let mut first = record("a");
        first.timestamp_ms = Some(1_000 + i * 20);
        let mut second = record("b");
        second.timestamp_ms = Some(1_000 + i * 20 + 10);
        broker.produce(append(vec![first, second]), Route::Local).await.unwrap();
    }
    for (time, expected) in
        [(0, Some((0, 1_000))), (1_001, Some((1, 1_010))), (1_500, Some((50, 1_500))), (1_991, None)]
    {
        let offsets = broker.offsets(&target("default"), Some(time), Route::Local).await.unwrap();
        assert_eq!(offsets.at_timestamp, expected, "time {time}");
        assert_eq!((offsets.earliest, offsets.next), (0, 100));
    }
    let fetched = fetch(&broker, Position::Timestamp(1_981), 0).await.unwrap();
    assert_eq!(fetched.records(None).unwrap().0[0].offset, 99);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_built_by_the_client_is_stored_as_it_is_and_a_bad_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    put(&broker, "first").await.unwrap();
    let mut builder = BatchBuilder::new(Compression::Lz4);
    builder.push(7, None, Some(b"x"), std::iter::empty()).unwrap();
    builder.push(8, None, Some(b"y"), std::iter::empty()).unwrap();
    let batch = builder.build().unwrap().freeze();
    let raw = |bytes: Bytes| Produce { payload: ProducePayload::Batch(bytes), ..append(vec![]) };
    assert_eq!(broker.produce(raw(batch.clone()), Route::Local).await.unwrap().base_offset, 1);
    let stored = fetch(&broker, Position::Offset(1), 0).await.unwrap().batches.remove(0);
    assert_eq!(stored[16..], batch[16..], "only base offset and leader epoch differ");

    let mut flipped = batch.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let refused = broker.produce(raw(flipped.into()), Route::Local).await.unwrap_err();
    assert_eq!(refused.reason, Reason::CorruptBatch);
    let mut unknown = batch.to_vec();
    unknown[22] |= 7;
    let refused = broker.produce(raw(unknown.into()), Route::Local).await.unwrap_err();
    assert!(matches!(refused.reason, Reason::UnsupportedCompression | Reason::CorruptBatch), "{refused}");
    let refused = broker.produce(append(vec![record(vec![0u8; 2 << 20])]), Route::Local).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RecordTooLarge);
    assert_eq!(broker.offsets(&target("default"), None, Route::Local).await.unwrap().next, 3);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_altered_described_and_deleted_with_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let new = NewTopic { name: "orders".into(), partitions: 3, ..NewTopic::default() };
    let (topic, created) = broker.create_topic(new.clone()).await.unwrap();
    assert!(created && topic.partitions == 3);
    assert_eq!(broker.create_topic(new.clone()).await.unwrap_err().reason, Reason::TopicExists);
    let (_, created) = broker.create_topic(NewTopic { if_not_exists: true, ..new }).await.unwrap();
    assert!(!created);
    for name in ["", ".", "..", "a/b", "ä", &"x".repeat(250)] {
        let refused = broker.create_topic(NewTopic { name: name.into(), ..NewTopic::default() }).await.unwrap_err();
        assert_eq!(refused.reason, Reason::InvalidRequest, "{name:?}");
    }
    let mut request = append(vec![record("x")]);
    request.target = TopicPartition { topic: "orders".into(), partition: 2 };
    broker.produce(request.clone(), Route::Local).await.unwrap();
    let change = SettingsChange { segment_bytes: Some(65_536), ..SettingsChange::default() };
    let altered = broker.alter_topic("orders", 5, change).await.unwrap();
    assert_eq!((altered.partitions, altered.settings.segment_bytes), (5, 65_536));
    let shrink = broker.alter_topic("orders", 2, SettingsChange::default()).await.unwrap_err();
    assert_eq!(shrink.reason, Reason::InvalidRequest);
    broker.produce(request.clone(), Route::Local).await.unwrap();
    let (_, partitions) = broker.describe_topic("orders").await.unwrap();
    assert_eq!(partitions.iter().map(|p| p.next).collect::<Vec<_>>(), [0, 0, 2, 0, 0]);
    let logs = |id| {
        let names = std::fs::read_dir(dir.path().join("data/logs")).unwrap();
        names.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains(&format!("{id}"))).count()
    };
    assert!(logs(topic.id) > 0);
    broker.delete_topic("orders").await.unwrap();
    assert_eq!(logs(topic.id), 0);
    assert_eq!(broker.produce(request, Route::Local).await.unwrap_err().reason, Reason::UnknownTopic);
    assert_eq!(broker.topics().await.unwrap().len(), 1);
    broker.shutdown().await;
}

async fn asleep(broker: &Broker) {
    while broker.partition_totals().open() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_partition_becomes_dormant_and_reopens_with_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.partitions.idle_ms = 20;
    let broker = start(config).await;
    let (id, epoch) = broker.init_producer().await.unwrap();
    for i in 0..5 {
        assert_eq!(put_as(&broker, id, epoch, i, "v").await.unwrap().base_offset, i64::from(i));
        asleep(&broker).await;
        let (_, partitions) = broker.describe_topic("default").await.unwrap();
        assert_eq!(partitions[0].state, "dormant");
        assert_eq!(partitions[0].next, i64::from(i) + 1);
        assert!(put_as(&broker, id, epoch, i, "v").await.unwrap().duplicate);
    }
    assert_eq!(all_values(&broker).await.len(), 5);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_by_bytes_and_by_age_moves_the_log_start_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.partitions.retention_check_ms = 20;
    let broker = start(config.clone()).await;
    let change =
        SettingsChange { segment_bytes: Some(65_536), retention_bytes: Some(200_000), ..SettingsChange::default() };
    broker.alter_topic("default", 0, change).await.unwrap();
    for i in 0..600u32 {
        put(&broker, vec![i as u8; 1000]).await.unwrap();
    }
    let mut earliest = 0;
    while earliest == 0 {
        earliest = broker.offsets(&target("default"), None, Route::Local).await.unwrap().earliest;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = fetch(&broker, Position::Offset(0), 0).await.unwrap_err();
    assert_eq!(error.reason, Reason::OffsetOutOfRange);
    broker.shutdown().await;

    let broker = start(config).await;
    let offsets = broker.offsets(&target("default"), None, Route::Local).await.unwrap();
    assert!(offsets.earliest >= earliest && offsets.next == 600, "{offsets:?}");
    let values = all_values(&broker).await;
    assert_eq!(values.last().unwrap()[..], [599u32 as u8; 1000]);
    // By age, even the newest segment goes when nobody writes any more.
    let change = SettingsChange { retention_ms: Some(0), ..SettingsChange::default() };
    broker.alter_topic("default", 0, change).await.unwrap();
    loop {
        let offsets = broker.offsets(&target("default"), None, Route::Local).await.unwrap();
        if offsets.earliest == offsets.next {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(put(&broker, "after").await.unwrap().base_offset, 600);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_directory_and_a_newer_format_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let Err(second) = Core::start(Arc::new(config(dir.path()))).await else { panic!("the directory is in use") };
    assert!(second.message.contains("in use"), "{second}");
    put(&broker, "still fine").await.unwrap();

    // One that may wait gets the directory once it is free.
    let mut patient = config(dir.path());
    patient.storage.lock_wait_ms = 60_000;
    let mut successor = tokio::spawn(Core::start(Arc::new(patient)));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut successor).await;
    assert!(early.is_err(), "the directory is in use");
    broker.shutdown().await;
    let broker = successor.await.unwrap().unwrap();
    assert_eq!(all_values(&broker).await, ["still fine"]);
    broker.shutdown().await;

    let format = dir.path().join("data/FORMAT");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, text.replacen("chronicle-data 2", "chronicle-data 999", 1)).unwrap();
    let Err(newer) = Core::start(Arc::new(config(dir.path()))).await else { panic!("the format is newer") };
    assert!(newer.message.contains("format"), "{newer}");
    std::fs::write(&format, text).unwrap();
    let broker = start(config(dir.path())).await;
    assert_eq!(all_values(&broker).await, ["still fine"]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_waits_sees_what_is_appended_after_its_partition_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    put(&broker, "before").await.unwrap();
    let waiting = {
        let broker = broker.clone();
        tokio::spawn(async move {
            // As a follower of the tail does: an empty answer means to ask again.
            loop {
                let fetched = fetch(&broker, Position::Offset(1), 60_000).await.unwrap();
                if !fetched.batches.is_empty() {
                    return fetched.records(None).unwrap().0;
                }
            }
        })
    };
    let change = SettingsChange { segment_bytes: Some(65_536), ..SettingsChange::default() };
    broker.alter_topic("default", 0, change).await.unwrap();
    put(&broker, "after").await.unwrap();
    let records = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the reader wakes").unwrap();
    assert_eq!(records[0].value.as_deref(), Some(&b"after"[..]));
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_while_its_partition_opens_leaves_it_usable() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let new = NewTopic { name: "many".into(), partitions: 20, ..NewTopic::default() };
    broker.create_topic(new).await.unwrap();
    for partition in 0..20 {
        let mut request = append(vec![record("x")]);
        request.target = TopicPartition { topic: "many".into(), partition };
        // Dropped at some point while the partition opens.
        let _ = tokio::time::timeout(Duration::from_micros(300), broker.produce(request.clone(), Route::Local)).await;
        broker.produce(request, Route::Local).await.unwrap();
    }
    let altering = broker.alter_topic("many", 30, SettingsChange::default());
    let _ = tokio::time::timeout(Duration::from_micros(100), altering).await;
    broker.alter_topic("many", 31, SettingsChange::default()).await.unwrap();
    broker.delete_topic("many").await.unwrap();
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn describing_a_topic_that_was_never_used_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    let new = NewTopic { name: "wide".into(), partitions: 1000, ..NewTopic::default() };
    broker.create_topic(new).await.unwrap();
    let (_, partitions) = broker.describe_topic("wide").await.unwrap();
    assert!(partitions.len() == 1000 && partitions.iter().all(|p| p.state == "dormant" && p.next == 0));
    assert_eq!(broker.partition_totals().open(), 0);
    broker.shutdown().await;
}
