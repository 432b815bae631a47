//! Durable state of consumer groups: the records of `__groups`, and the view that is built from them.
//!
//! A record is a change. Its key identifies what changes, as JSON:
//!
//! | key | value |
//! |---|---|
//! | `{"group":"g"}` | `{"generation":3}` |
//! | `{"group":"g","member":"id"}` | `{"client_name":"…","topics":["…"],"session_timeout_ms":30000}` |
//! | `{"group":"g","topic":"t","partition":0}` | `{"topic_id":"…","offset":7,"metadata":"…","committed_ms":…}` |
//!
//! A null value deletes what the key identifies. A group exists while any of these exists.
//!
//! Invariants:
//! - [`GroupTable`] is a pure function of the records (see [`View`]); a record that it cannot decode is skipped.
//! - A generation in the table never decreases as long as its group exists.

use std::collections::BTreeMap;

use bytes::Bytes;
use chronicle_records::Record;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::partition::View;

/// A stored member: enough to restore its session after a change of coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Name for people.
    pub client_name: String,
    /// Topics that it reads; sorted, each once.
    pub topics: Vec<String>,
    /// Session timeout: the member is removed after this long without a heartbeat, in milliseconds.
    pub session_timeout_ms: u32,
}

/// A stored offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRecord {
    /// The topic that had the name at the commit: a topic with the same name that was created later starts without offsets.
    pub topic_id: Uuid,
    /// The next offset to read.
    pub offset: i64,
    /// Metadata of the client.
    pub metadata: String,
    /// Time of the commit, in milliseconds since the Unix epoch.
    pub committed_ms: i64,
}

/// A stored group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Counts changes of members and assignment; 0: the group never had a member.
    pub generation: i32,
    /// By member id.
    pub members: BTreeMap<String, MemberRecord>,
    /// By topic name and partition.
    pub offsets: BTreeMap<String, BTreeMap<i32, OffsetRecord>>,
}

impl GroupRecord {
    fn is_empty(&self) -> bool {
        self.generation == 0 && self.members.is_empty() && self.offsets.is_empty()
    }
}

/// A change of a stored group: one record of `__groups`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The group's generation; `None`: the group is deleted.
    Generation(Option<i32>),
    /// A member joined, changed or (`None`) left.
    Member(String, Option<MemberRecord>),
    /// An offset was set or (`None`) deleted.
    Offset(String, i32, Option<OffsetRecord>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordKey {
    group: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    member: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
}

#[derive(Serialize, Deserialize)]
struct GenerationValue {
    generation: i32,
}

impl Change {
    /// Key and value (`None`: null) of the record.
    pub fn encode(&self, group: &str) -> (Bytes, Option<Bytes>) {
        let mut key = RecordKey { group: group.to_owned(), member: None, topic: None, partition: None };
        let value = match self {
            Self::Generation(generation) => generation.map(|generation| json(&GenerationValue { generation })),
            Self::Member(id, member) => {
                key.member = Some(id.clone());
                member.as_ref().map(json)
            }
            Self::Offset(topic, partition, offset) => {
                key.topic = Some(topic.clone());
                key.partition = Some(*partition);
                offset.as_ref().map(json)
            }
        };
        (json(&key), value)
    }

    /// The group and the change of a record; `None`: it cannot be decoded.
    fn decode(record: &Record) -> Option<(String, Self)> {
        let key: RecordKey = serde_json::from_slice(record.key.as_deref()?).ok()?;
        let value = record.value.as_deref();
        let change = match (key.member, key.topic, key.partition) {
            (None, None, None) => Self::Generation(parse::<GenerationValue>(value)?.map(|value| value.generation)),
            (Some(member), None, None) => Self::Member(member, parse(value)?),
            (None, Some(topic), Some(partition)) => Self::Offset(topic, partition, parse(value)?),
            _ => return None,
        };
        Some((key.group, change))
    }
}

fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("group records have string keys and plain values").into()
}

/// `Some(None)`: a null value. `None`: cannot be decoded.
fn parse<T: for<'de> Deserialize<'de>>(value: Option<&[u8]>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(bytes) => serde_json::from_slice(bytes).ok().map(Some),
    }
}

/// The groups of one partition of `__groups`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GroupTable {
    groups: BTreeMap<String, GroupRecord>,
}

impl GroupTable {
    /// One group.
    pub fn get(&self, group: &str) -> Option<&GroupRecord> {
        self.groups.get(group)
    }

    /// All groups, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &GroupRecord)> {
        self.groups.iter()
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there are no groups.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn change(&mut self, name: String, change: Change) {
        let group = self.groups.entry(name.clone()).or_default();
        match change {
            Change::Generation(Some(generation)) => group.generation = group.generation.max(generation),
            Change::Generation(None) => group.generation = 0,
            Change::Member(id, Some(member)) => {
                group.members.insert(id, member);
            }
            Change::Member(id, None) => {
                group.members.remove(&id);
            }
            Change::Offset(topic, partition, Some(offset)) => {
                group.offsets.entry(topic).or_default().insert(partition, offset);
            }
            Change::Offset(topic, partition, None) => {
                if let Some(partitions) = group.offsets.get_mut(&topic) {
                    partitions.remove(&partition);
                    if partitions.is_empty() {
                        group.offsets.remove(&topic);
                    }
                }
            }
        }
        if group.is_empty() {
            self.groups.remove(&name);
        }
    }
}

impl View for GroupTable {
    fn apply(&mut self, record: &Record) {
        match Change::decode(record) {
            Some((group, change)) => self.change(group, change),
            None => tracing::warn!(offset = record.offset, "skipped a record of __groups that cannot be decoded"),
        }
    }

    fn save(&self) -> Vec<u8> {
        serde_json::to_vec(&self.groups).expect("groups have string and integer keys and plain values")
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.groups = serde_json::from_slice(bytes).map_err(|e| format!("groups: {e}"))?;
        Ok(())
    }

    fn clear(&mut self) {
        self.groups.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record((key, value): (Bytes, Option<Bytes>)) -> Record {
        Record { offset: 0, timestamp: 0, key: Some(key), value, headers: Vec::new() }
    }

    fn member() -> MemberRecord {
        MemberRecord { client_name: "c".into(), topics: vec!["t".into()], session_timeout_ms: 30_000 }
    }

    fn offset(offset: i64) -> OffsetRecord {
        OffsetRecord { topic_id: Uuid::from_u128(1), offset, metadata: "m".into(), committed_ms: 5 }
    }

    #[test]
    fn changes_add_up_are_taken_back_and_a_group_without_anything_is_empty() {
        let mut table = GroupTable::default();
        let apply = |table: &mut GroupTable, change: Change| table.apply(&record(change.encode("g")));
        apply(&mut table, Change::Generation(Some(3)));
        apply(&mut table, Change::Member("a".into(), Some(member())));
        apply(&mut table, Change::Offset("t".into(), 1, Some(offset(7))));
        let group = table.get("g").unwrap();
        assert_eq!((group.generation, &group.members["a"], &group.offsets["t"][&1]), (3, &member(), &offset(7)));
        apply(&mut table, Change::Generation(Some(2)));
        assert_eq!(table.get("g").unwrap().generation, 3, "a generation does not go back");
        apply(&mut table, Change::Member("a".into(), None));
        apply(&mut table, Change::Offset("t".into(), 1, None));
        apply(&mut table, Change::Generation(None));
        assert!(table.is_empty());
    }

    #[test]
    fn a_saved_table_is_the_same_when_restored() {
        let mut table = GroupTable::default();
        for (group, partition) in [("a", 0), ("a", 1), ("b", 0)] {
            table.apply(&record(Change::Offset("t".into(), partition, Some(offset(9))).encode(group)));
        }
        let mut restored = GroupTable::default();
        restored.restore(&table.save()).unwrap();
        assert_eq!(restored, table);
        assert!(restored.restore(b"{").is_err());
        restored.clear();
        assert!(restored.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn foreign_records_are_skipped(
            key in proptest::option::of(".{0,40}"),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        ) {
            let mut table = GroupTable::default();
            let key = key.map(Bytes::from);
            table.apply(&Record { offset: 0, timestamp: 0, key, value: value.map(Bytes::from), headers: Vec::new() });
            prop_assert!(table.is_empty());
        }
    }
}
