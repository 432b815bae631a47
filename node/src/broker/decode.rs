//! Stored batches back to records.

use chronicle_records::Record;

use super::{BrokerError, Fetched, Reason};
use crate::partition::STORED;

/// See [`Fetched::records`].
pub(super) fn records(fetched: &Fetched, limit: Option<usize>) -> Result<(Vec<Record>, i64), BrokerError> {
    let damaged = |e: chronicle_records::BatchError| {
        BrokerError::new(Reason::DataDamaged, format!("a stored batch cannot be decoded: {e}"))
    };
    let mut records = Vec::new();
    for batch in &fetched.batches {
        for record in chronicle_records::records(batch, &STORED).map_err(damaged)? {
            let record = record.map_err(damaged)?;
            if record.offset < fetched.start_offset {
                continue;
            }
            if limit.is_some_and(|limit| records.len() >= limit) {
                return Ok((records, record.offset));
            }
            records.push(record);
        }
    }
    Ok((records, fetched.next_offset))
}
