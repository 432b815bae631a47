//! Whether an append that has the sequence number of a stored batch has its records too.
//!
//! Sequences alone do not tell: two processes that use one producer id by mistake each believe that a "duplicate" is their own
//! record. Timestamps are not compared, since the node sets those that a request leaves out.

use bytes::Bytes;
use chronicle_log::Log;
use chronicle_records::{BatchError, Record};

use crate::model::STORED;

/// Bytes of the log read at once.
const READ_BYTES: usize = 1 << 20;

/// Returns whether keys, values and headers of `batch` are those of the records that are stored from `base_offset` on. `true` as well
/// when these can no longer be read (deleted by retention, damaged): the sequence number then has to do. `max_index` is the last raft
/// index that may be read.
pub(super) fn is_repeat(log: &Log, batch: &Bytes, base_offset: i64, max_index: Option<u64>) -> bool {
    let sent = chronicle_records::records(batch, &STORED).and_then(|records| records.collect::<Result<Vec<_>, _>>());
    let (Ok(sent), Some(max_index)) = (sent, max_index) else { return true };
    let Ok(mut offset) = u64::try_from(base_offset) else { return true };
    let end = offset + sent.len() as u64;
    while offset < end {
        let Ok(entries) = log.read_at_offset(offset, max_index, READ_BYTES) else { return true };
        let Some(last) = entries.last() else { return true };
        for entry in &entries {
            match same_in(&entry.entry.payload, &sent, base_offset) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => return true,
            }
        }
        offset = last.next_offset();
    }
    true
}

/// Compares the stored records of one entry that have offsets of the sent ones.
fn same_in(stored: &Bytes, sent: &[Record], base_offset: i64) -> Result<bool, BatchError> {
    let end = base_offset + sent.len() as i64;
    for batch in chronicle_records::split(stored) {
        let (header, bytes) = batch?;
        if header.last_offset() < base_offset || header.base_offset >= end {
            continue;
        }
        for record in chronicle_records::records(&bytes, &STORED)? {
            let record = record?;
            let Some(sent) = record.offset.checked_sub(base_offset).and_then(|at| sent.get(usize::try_from(at).ok()?))
            else {
                continue;
            };
            if (&record.key, &record.value, &record.headers) != (&sent.key, &sent.value, &sent.headers) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
