//! Counters of records and bytes per topic on this node, for metrics.
//!
//! Invariant: at most `max` topics have their own counters; all others share one set, so that metrics stay bounded with any
//! number of topics. The first topics in use get their own counters, until they are deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

/// The label value of topics without their own counters. A topic named `other` never has its own counters.
const OTHER: &str = "other";

/// Counters of one topic, since the node started. Only records that this node itself acknowledged, or read for clients.
#[derive(Debug, Default)]
pub struct TopicTraffic {
    /// Records acknowledged to producers.
    pub appended_records: AtomicU64,
    /// Bytes of their batches.
    pub appended_bytes: AtomicU64,
    /// Records read.
    pub read_records: AtomicU64,
    /// Bytes of their batches, as stored.
    pub read_bytes: AtomicU64,
}

impl TopicTraffic {
    pub(super) fn appended(&self, records: u64, bytes: u64) {
        self.appended_records.fetch_add(records, Ordering::Relaxed);
        self.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read(&self, records: u64, bytes: u64) {
        self.read_records.fetch_add(records, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The counters by topic.
pub(super) struct TopicTable {
    max: usize,
    apart: RwLock<HashMap<String, Arc<TopicTraffic>>>,
    other: Arc<TopicTraffic>,
}

impl TopicTable {
    pub(super) fn new(max: usize) -> Self {
        Self { max, apart: RwLock::default(), other: Arc::default() }
    }

    /// The counters of a topic.
    pub(super) fn of(&self, topic: &str) -> Arc<TopicTraffic> {
        if let Some(found) = self.apart.read().get(topic) {
            return found.clone();
        }
        let mut apart = self.apart.write();
        if let Some(found) = apart.get(topic) {
            return found.clone();
        }
        if apart.len() >= self.max || topic == OTHER {
            return self.other.clone();
        }
        apart.entry(topic.to_owned()).or_default().clone()
    }

    /// Every label value with its counters. Removes those of deleted topics.
    pub(super) fn all(&self, exists: impl Fn(&str) -> bool) -> Vec<(String, Arc<TopicTraffic>)> {
        self.apart.write().retain(|topic, _| exists(topic));
        let apart = self.apart.read();
        let mut all: Vec<_> = apart.iter().map(|(topic, traffic)| (topic.clone(), traffic.clone())).collect();
        all.push((OTHER.to_owned(), self.other.clone()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_bound_share_one_counter_and_deleted_ones_make_room() {
        let table = TopicTable::new(2);
        for topic in ["a", "b", "c", "d", "a"] {
            table.of(topic).appended(1, 10);
        }
        let counts = |table: &TopicTable, exists: &dyn Fn(&str) -> bool| {
            let mut all: Vec<_> = table
                .all(exists)
                .into_iter()
                .map(|(topic, traffic)| (topic, traffic.appended_records.load(Ordering::Relaxed)))
                .collect();
            all.sort();
            all
        };
        let two = [("a".to_owned(), 2), ("b".to_owned(), 1), ("other".to_owned(), 2)];
        assert_eq!(counts(&table, &|_| true), two);
        counts(&table, &|topic| topic != "b");
        table.of("c").appended(1, 10);
        assert!(counts(&table, &|_| true).contains(&("c".to_owned(), 1)));
        table.of("other").read(5, 5);
        assert_eq!(table.of("x").read_records.load(Ordering::Relaxed), 5);
    }
}
