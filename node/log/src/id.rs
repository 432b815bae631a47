//! The name of a log.
//!
//! Invariant: one log has one spelling. Neighbours: parsing with an error is in `error.rs`. Imports only `bytes_le.rs`.

use std::fmt;

use uuid::Uuid;

use crate::bytes_le::get_u32;

/// Names one log: a partition of a topic. Its text form, `<uuid>-<partition>`, is also the name of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId {
    /// The topic. Never reused, so that a new topic never finds the directory of a deleted one.
    pub topic: Uuid,
    /// Partition number within the topic, from 0.
    pub partition: u32,
}

impl LogId {
    /// The log with this name. `None` for any other spelling than the one that [`fmt::Display`] writes: one log must not have two
    /// directories.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let (topic, partition) = name.rsplit_once('-')?;
        let id = Self { topic: Uuid::try_parse(topic).ok()?, partition: partition.parse().ok()? };
        (id.to_string() == name).then_some(id)
    }

    /// The identity from those bytes.
    pub(crate) fn from_bytes(bytes: [u8; 20]) -> Self {
        let mut topic = [0; 16];
        topic.copy_from_slice(&bytes[..16]);
        Self { topic: Uuid::from_bytes(topic), partition: get_u32(&bytes, 16) }
    }

    /// The identity as it enters checksums and headers: 16 bytes of topic, then the partition, little-endian.
    pub(crate) fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(self.topic.as_bytes());
        bytes[16..].copy_from_slice(&self.partition.to_le_bytes());
        bytes
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic.hyphenated(), self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LogError;

    #[test]
    fn text_form_round_trips() {
        let id = LogId { topic: Uuid::from_u128(0xfeed), partition: 7 };
        assert_eq!(id.to_string().parse::<LogId>().unwrap(), id);
    }

    #[test]
    fn only_the_canonical_spelling_is_a_name() {
        let id = LogId { topic: Uuid::from_u128(0xfeed), partition: 7 }.to_string();
        let zero_padded = id.replace("-7", "-07");
        for text in ["", "x", "-", "00000000-0000-0000-0000-000000000000", &id.to_uppercase(), &zero_padded] {
            assert!(matches!(text.parse::<LogId>(), Err(LogError::InvalidName(_))), "{text:?}");
        }
    }
}
