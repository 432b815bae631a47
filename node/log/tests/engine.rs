//! Appending, reading, rolling, sealing, changing and reopening, through the public interface.

mod common;

use chronicle_log::{EntryKind, LogConfig, LogError};
use common::*;

#[test]
fn what_was_appended_is_read_back_before_and_after_reopening() {
    let (_, disk) = memory();
    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    fill(&log, 0, 200);
    assert_samples(&log, 0, 200);
    assert!(log.position().segments > 3, "{:?}", log.position());
    let position = log.position();
    store.close().unwrap();

    let store = open(&disk);
    let log = store.open_log(id(0), LogConfig::default()).unwrap();
    assert_eq!(store.metrics().recoveries.get(), 0, "a cleanly closed log is not scanned");
    let reopened = log.position();
    assert_eq!((reopened.last, reopened.next_offset), (position.last, position.next_offset));
    assert_samples(&log, 0, 200);
    fill(&log, 200, 210);
    assert_samples(&log, 0, 210);
}
