//! What a failing disk does to a node: a specific error, nothing acknowledged lost, service again when the disk heals.

use std::sync::Arc;
use std::time::Duration;

use crate::support::*;
use chronicle_log::disk::{DiskOperation, Fault, FaultRule, FaultyDisk, RealDisk};
use chronicle_node::broker::Route;
use chronicle_node::model::{ApiError, NewTopic, Position, Produce, Reason};

struct Node {
    broker: Core,
    disk: FaultyDisk,
    _dir: tempfile::TempDir,
}

async fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let broker = Core::start_on(Arc::new(config(dir.path())), Arc::new(disk.clone())).await.unwrap();
    for i in 0..10 {
        put(&broker, format!("kept {i}")).await.unwrap();
    }
    Node { broker, disk, _dir: dir }
}

impl Node {
    /// The first error that is not the open outcome of the append that met the fault.
    async fn refused(&self) -> ApiError {
        loop {
            match put(&self.broker, "refused").await {
                Ok(_) => {}
                Err(error) if error.reason == Reason::OutcomeUnknown => {
                    assert!(error.value("cause").is_some(), "{error}");
                }
                Err(error) => return error,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Appends until one is acknowledged again, and checks that what was acknowledged is all there.
    async fn recovers(self) {
        self.disk.heal();
        let offset = loop {
            match put(&self.broker, "after").await {
                Ok(produced) => break produced.base_offset,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let values = all_values(&self.broker).await;
        for (i, value) in values.iter().take(10).enumerate() {
            assert_eq!(*value, format!("kept {i}"));
        }
        assert_eq!(values[offset as usize], "after");
        self.broker.shutdown().await;
    }
}

fn segments(operation: DiskOperation, fault: Fault) -> FaultRule {
    FaultRule::new(operation, fault).path(".log")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_appends_serves_reads_and_heals() {
    let node = node().await;
    node.disk.add(segments(DiskOperation::Write, Fault::NO_SPACE));
    let error = node.refused().await;
    assert_eq!(error.reason, Reason::DiskFull, "{error}");
    node.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_half_way_is_cut_and_nothing_else() {
    let node = node().await;
    let errno = match Fault::NO_SPACE {
        Fault::Errno(errno) => errno,
        _ => unreachable!("NO_SPACE is an error number"),
    };
    node.disk.add(segments(DiskOperation::Write, Fault::Partial(50, errno)));
    let error = node.refused().await;
    assert_eq!(error.reason, Reason::DiskFull, "{error}");
    node.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_io_error_on_write_refuses_appends_and_heals() {
    let node = node().await;
    node.disk.add(segments(DiskOperation::Write, Fault::IO_ERROR));
    let error = node.refused().await;
    assert_eq!(error.reason, Reason::DiskFailed, "{error}");
    node.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_flush_is_never_retried_and_what_was_not_flushed_is_not_acknowledged() {
    let node = node().await;
    node.disk.add(segments(DiskOperation::Sync, Fault::IO_ERROR));
    let error = node.refused().await;
    assert_eq!(error.reason, Reason::DiskFailed, "{error}");
    node.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn free_space_below_the_reserve_refuses_appends_before_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let broker = start(config.clone()).await;
    put(&broker, "kept").await.unwrap();
    broker.shutdown().await;
    config.storage.reserve_bytes = u64::MAX;
    let broker = start(config).await;
    let error = put(&broker, "x").await.unwrap_err();
    assert_eq!(error.reason, Reason::DiskFull);
    let new = NewTopic { name: "new".into(), ..NewTopic::default() };
    assert_eq!(broker.create_topic(new).await.unwrap_err().reason, Reason::DiskFull);
    // Reads and deletions go on.
    assert_eq!(all_values(&broker).await, ["kept"]);
    broker.delete_topic("default").await.unwrap();
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_directory_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    disk.add(FaultRule::new(DiskOperation::Change, Fault::READ_ONLY));
    let Err(error) = Core::start_on(Arc::new(config(dir.path())), Arc::new(disk)).await else {
        panic!("a read-only directory cannot be served")
    };
    assert!(error.message.contains("read-only"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_sealed_segment_is_reported_and_never_served() {
    use chronicle_node::model::SettingsChange;
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.storage.tail_cache_bytes = 0;
    let broker = start(config.clone()).await;
    let change = SettingsChange { segment_bytes: Some(65_536), ..SettingsChange::default() };
    broker.alter_topic("default", 0, change).await.unwrap();
    for i in 0..200u32 {
        put(&broker, vec![i as u8; 1000]).await.unwrap();
    }
    broker.shutdown().await;
    let topic_log = std::fs::read_dir(dir.path().join("data/logs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|path| !path.to_string_lossy().contains("00000000-0000-0000-0000-000000000000"))
        .unwrap();
    let mut files: Vec<_> = std::fs::read_dir(topic_log)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    files.sort();
    assert!(files.len() > 1);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&files[0]).unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, 10_000).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, 10_000).unwrap();

    let broker = start(config).await;
    let mut next = 0;
    let error = loop {
        match fetch(&broker, Position::Offset(next), 0).await {
            Ok(fetched) => {
                for record in fetched.records(None).unwrap().0 {
                    assert!(record.value.unwrap().iter().all(|b| *b == record.offset as u8));
                }
                next = fetched.next_offset;
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason, Reason::DataDamaged, "{error}");
    // The rest of the log is still served.
    let last = fetch(&broker, Position::Offset(199), 0).await.unwrap();
    assert_eq!(last.records(None).unwrap().0[0].offset, 199);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_very_first_write_failed_opens_when_the_disk_heals() {
    use chronicle_log::disk::Trigger;
    for (operation, nth) in
        [(DiskOperation::Create, 1), (DiskOperation::Write, 1), (DiskOperation::Write, 2), (DiskOperation::Sync, 1)]
    {
        let node = node().await;
        node.broker.create_topic(NewTopic { name: "new".into(), ..NewTopic::default() }).await.unwrap();
        let (topic, _) = node.broker.describe_topic("new").await.unwrap();
        node.disk.add(FaultRule::new(operation, Fault::IO_ERROR).path(topic.id.to_string()).when(Trigger::Nth(nth)));
        let append = || Produce { target: target("new"), ..append(vec![record("x")]) };
        let _ = node.broker.produce(append(), Route::Local).await;
        assert!(node.disk.fired() > 0, "{operation:?} {nth}");
        while node.broker.produce(append(), Route::Local).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // And once more after a restart of the whole node.
        node.broker.shutdown().await;
        let broker = Core::start(Arc::new(config(node._dir.path()))).await.unwrap();
        broker.produce(append(), Route::Local).await.unwrap();
        broker.shutdown().await;
    }
}
