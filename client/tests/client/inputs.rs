//! Requests and values that several files of tests send.

use chronicle_client::{Partition, v1};

/// The partition of a request that names no topic.
pub(crate) fn partition() -> Partition {
    Partition::new("", 0)
}

/// An append of one record.
pub(crate) fn request(value: &str, producer: Option<v1::ProducerIdentity>) -> v1::ProduceRequest {
    let record = v1::Record { value: Some(value.to_owned().into()), ..Default::default() };
    v1::ProduceRequest { records: vec![record], producer, ..Default::default() }
}

/// The first producer of a fake node.
pub(crate) fn identity(sequence: i32) -> Option<v1::ProducerIdentity> {
    Some(v1::ProducerIdentity { producer_id: 1, epoch: 0, sequence })
}

/// The numbers of a range, as text.
pub(crate) fn values(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}
