//! Mutated records of the internal topic of groups: clients with the right to write it may write anything.

use chronicle_fuzz::Fuzz;
use chronicle_records::Record;
use uuid::Uuid;

use super::table::{Change, GroupTable, MemberRecord, OffsetRecord};
use crate::partition::View;

/// Key and value of a record as one input: the key ends at the first line break.
fn input(change: &Change) -> Vec<u8> {
    let (key, value) = change.encode("group");
    [&key[..], b"\n", value.as_deref().unwrap_or_default()].concat()
}

#[test]
fn mutated_records_and_checkpoints_of_groups_change_something_or_nothing() {
    let member = MemberRecord { client_name: "c".into(), topics: vec!["t".into()], session_timeout_ms: 9000 };
    let offset = OffsetRecord { topic_id: Uuid::from_u128(7), offset: 8, metadata: "m".into(), committed_ms: 9 };
    let changes = [
        Change::Generation(Some(3)),
        Change::Member("m".into(), Some(member)),
        Change::Offset("t".into(), 0, Some(offset)),
        Change::Offset("t".into(), 1, None),
    ];
    let record = |bytes: &[u8]| {
        let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let part = |part: &[u8]| (!part.is_empty()).then(|| part.to_vec().into());
        let (key, value) = (part(&bytes[..at]), part(bytes.get(at + 1..).unwrap_or_default()));
        Record { offset: 0, timestamp: 0, key, value, headers: Vec::new() }
    };
    let mut filled = GroupTable::default();
    let mut fuzz = Fuzz::new("group-records");
    for change in &changes {
        fuzz = fuzz.seed(input(change));
        filled.apply(&record(&input(change)));
    }
    let saved = filled.save();
    fuzz.seed(saved.clone()).run(|bytes| {
        let mut table = GroupTable::default();
        table.restore(&saved).unwrap();
        table.apply(&record(bytes));
        let restored = GroupTable::default().restore(bytes);
        // What was taken can be saved and restored again.
        GroupTable::default().restore(&table.save()).unwrap();
        format!("{} {restored:?}", table.save() == saved)
    });
}
