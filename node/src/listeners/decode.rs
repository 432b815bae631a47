//! Decodes the batches of a fetch into records, within the limits of one response.

use chronicle_records::Record;

use crate::model::{ApiError, Fetched};

/// Returns the records of `fetched` and the offset of the next read. At most `max_records` records (`None`: no limit)
/// and about `max_bytes` bytes of them, but at least one record. Decodes batch by batch, so the decompressed
/// data exceeds the limits of the response by at most one batch.
///
/// # Errors
/// DATA_DAMAGED when a stored batch cannot be decoded.
pub(crate) fn records(
    fetched: &Fetched,
    max_records: Option<usize>,
    max_bytes: usize,
) -> Result<(Vec<Record>, i64), ApiError> {
    let mut records: Vec<Record> = Vec::new();
    let mut bytes = 0usize;
    for batch in &fetched.batches {
        let one = Fetched { batches: vec![batch.clone()], ..*fetched };
        let (decoded, _) = one.records(max_records.map(|max| max.saturating_sub(records.len())))?;
        for record in decoded {
            let full = max_records.is_some_and(|max| records.len() >= max);
            if full || (!records.is_empty() && bytes + size(&record) > max_bytes) {
                return Ok((records, record.offset));
            }
            bytes += size(&record);
            records.push(record);
        }
        if max_records.is_some_and(|max| records.len() >= max)
            && let Some(last) = records.last()
        {
            let next = last.offset + 1;
            return Ok((records, next));
        }
    }
    Ok((records, fetched.next_offset))
}

/// Returns the approximate size of a record in a response, in bytes.
fn size(record: &Record) -> usize {
    let len = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len());
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + len(value) + 8).sum();
    len(&record.key) + len(&record.value) + headers + 24
}
