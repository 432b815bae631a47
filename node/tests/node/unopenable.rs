//! Replicas that cannot be opened as they are: damaged or missing checkpoints, files in the place of folders and the reverse. Each
//! leaves the other replicas of the node alone, and says what can be done.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::support::*;
use chronicle_node::broker::Route;
use chronicle_node::model::{ApiError, NewTopic, Position, Produced, Reason, SettingsChange};

const CONTROLLER: &str = "00000000-0000-0000-0000-000000000000-0";

/// The folder of the log of partition 0 of a topic.
async fn folder(broker: &Core, dir: &Path, topic: &str) -> PathBuf {
    let (topic, _) = broker.describe_topic(topic).await.unwrap();
    dir.join(format!("data/logs/{}-0", topic.id))
}

async fn put_to(broker: &Core, topic: &str, value: &str) -> Result<Produced, ApiError> {
    let record = record(value.as_bytes().to_vec());
    let request = chronicle_node::model::Produce { target: target(topic), ..append(vec![record]) };
    broker.produce(request, Route::Local).await
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

async fn state(broker: &Core, topic: &str) -> String {
    broker.describe_topic(topic).await.unwrap().1[0].state.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_checkpoint_of_a_whole_log_is_rebuilt_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    for sequence in 0..20 {
        put_as(&broker, 77, 0, sequence, &format!("kept {sequence}")).await.unwrap();
    }
    let log = folder(&broker, dir.path(), "default").await;
    broker.shutdown().await;
    for damage in [flip as fn(&Path), |path: &Path| std::fs::remove_file(path).unwrap()] {
        // The controller group's too: its log is never shortened.
        damage(&log.join("checkpoint"));
        damage(&dir.path().join("data/logs").join(CONTROLLER).join("checkpoint"));
        let broker = start(config(dir.path())).await;
        let values = all_values(&broker).await;
        assert_eq!(values.len(), 20);
        assert_eq!(values[19], "kept 19");
        let again = put_as(&broker, 77, 0, 19, "kept 19").await.unwrap();
        assert!(again.duplicate && again.base_offset == 19, "the producers are known again: {again:?}");
        assert_eq!(state(&broker, "default").await, "active");
        broker.shutdown().await;
    }
    assert!(log.join("quarantine-1/checkpoint").exists(), "kept for analysis");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_of_a_log_without_its_beginning_is_refused_without_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.partitions.retention_check_ms = 10;
    let broker = start(config.clone()).await;
    broker.create_topic(NewTopic { name: "other".into(), ..NewTopic::default() }).await.unwrap();
    let change =
        SettingsChange { segment_bytes: Some(65_536), retention_bytes: Some(65_536), ..SettingsChange::default() };
    broker.alter_topic("default", 0, change).await.unwrap();
    while broker.offsets(&target("default"), None, Route::Local).await.unwrap().earliest == 0 {
        put(&broker, vec![b'x'; 10_000]).await.unwrap();
    }
    let offsets = broker.offsets(&target("default"), None, Route::Local).await.unwrap();
    let checkpoint = folder(&broker, dir.path(), "default").await.join("checkpoint");
    broker.shutdown().await;
    std::fs::remove_file(&checkpoint).unwrap();

    let broker = start(config.clone()).await;
    let error = put(&broker, "x").await.unwrap_err();
    assert_eq!(error.reason, Reason::DataDamaged, "{error}");
    let saved = format!("offsets {}..{}", offsets.earliest, offsets.next);
    for part in ["checkpoint", &saved, "no other replica has a copy", "backup"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    let error = fetch(&broker, Position::Latest, 0).await.unwrap_err();
    assert_eq!(error.reason, Reason::DataDamaged, "{error}");
    assert!(state(&broker, "default").await.starts_with("failed: DATA_DAMAGED: "));
    assert!(!checkpoint.exists(), "no empty checkpoint stands in for the lost one");
    let totals = broker.partition_totals();
    assert_eq!((totals.failed, totals.under_replicated, totals.offline), (1, 1, 1));
    put_to(&broker, "other", "x").await.unwrap();
    broker.shutdown().await;
    assert!(!checkpoint.exists(), "no empty checkpoint stands in for the lost one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_opened_leaves_the_others_alone_and_is_used_again_once_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    broker.create_topic(NewTopic { name: "other".into(), ..NewTopic::default() }).await.unwrap();
    put(&broker, "kept").await.unwrap();
    let log = folder(&broker, dir.path(), "default").await;
    broker.shutdown().await;

    // A file in the place of the folder; a folder in the place of a segment.
    let aside = dir.path().join("aside");
    let segment = log.join("00000000000000000000.log");
    for broken in [&log, &segment] {
        std::fs::rename(broken, &aside).unwrap();
        if broken == &log {
            std::fs::write(broken, "a file").unwrap();
        } else {
            std::fs::create_dir(broken).unwrap();
        }
        let broker = start(config(dir.path())).await;
        let error = put(&broker, "x").await.unwrap_err();
        assert_eq!(error.reason, Reason::DiskFailed, "not accepted, and no defect of the node: {error}");
        put_to(&broker, "other", "x").await.unwrap();
        assert!(state(&broker, "default").await.starts_with("failed: DISK_FAILED: "));
        let totals = broker.partition_totals();
        assert_eq!((totals.failed, totals.offline), (1, 1));
        if broken == &log {
            std::fs::remove_file(broken).unwrap();
        } else {
            std::fs::remove_dir(broken).unwrap();
        }
        std::fs::rename(&aside, broken).unwrap();
        while put(&broker, "after").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(all_values(&broker).await[0], "kept");
        assert_eq!((broker.partition_totals().failed, broker.partition_totals().offline), (0, 0));
        broker.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_deleted_although_a_file_stands_in_the_place_of_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(config(dir.path())).await;
    broker.create_topic(NewTopic { name: "gone".into(), ..NewTopic::default() }).await.unwrap();
    let log = folder(&broker, dir.path(), "gone").await;
    std::fs::write(&log, "a file").unwrap();
    put_to(&broker, "gone", "x").await.unwrap_err();
    broker.delete_topic("gone").await.unwrap();
    broker.shutdown().await;
    let broker = Core::start(Arc::new(config(dir.path()))).await.unwrap();
    assert!(!log.exists());
    broker.shutdown().await;
}
