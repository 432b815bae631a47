//! Stored batches back to records.

use chronicle_records::Record;

use super::{BrokerError, Fetched};

/// See [`Fetched::records`].
pub(super) fn records(_fetched: &Fetched, _limit: Option<usize>) -> Result<(Vec<Record>, i64), BrokerError> {
    unimplemented!()
}
