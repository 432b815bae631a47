//! The numbers of an idempotent producer: id, epoch and sequence (KIP-98), and when a new epoch begins (KIP-360).
//!
//! Invariants:
//! - Within an epoch no sequence is given to other records once it, or one after it, was acknowledged.
//! - A new epoch begins at sequence 0. Only this process raises the epoch, as Kafka's clients do: a node accepts any epoch
//!   that is higher than the one it has stored.
//!
//! Pure. `window.rs` decides when nothing of the old epoch may be left in flight.

use chronicle_proto::v1;

use crate::mutant::mutant;

/// The highest epoch: batches store it in 16 bits. After it comes a new producer id.
const EPOCH_MAX: i32 = i16::MAX as i32;

/// Sequences are 31 bits; two that are compared are less than half of that apart.
const HALF: i32 = 1 << 30;

/// Id, epoch and the sequences of the epoch.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    /// `None`: an id must be allocated before the next request.
    identity: Option<v1::InitProducerResponse>,
    /// Sequence of the next new request.
    next: i32,
    /// The sequence after the last one that was acknowledged in this epoch; 0: none was.
    acknowledged: i32,
    /// A sequence of this epoch was left out, so a node accepts none after it.
    is_over: bool,
}

impl Epoch {
    /// Whether an id must be allocated.
    pub(super) fn needs_identity(&self) -> bool {
        self.identity.is_none()
    }

    /// Sets an allocated id.
    pub(super) fn identify(&mut self, identity: v1::InitProducerResponse) {
        self.identity = Some(identity);
    }

    /// What a request with this sequence carries.
    pub(super) fn of_request(&self, sequence: i32) -> Option<v1::ProducerIdentity> {
        self.identity.map(|id| v1::ProducerIdentity { producer_id: id.producer_id, epoch: id.epoch, sequence })
    }

    /// Takes the sequences of a new request.
    pub(super) fn take(&mut self, count: i32) -> i32 {
        let sequence = self.next;
        self.next = advance(sequence, count);
        sequence
    }

    /// A request was acknowledged.
    pub(super) fn acknowledge(&mut self, sequence: i32, count: i32) {
        let end = advance(sequence, count);
        if distance(self.acknowledged, end) < HALF {
            self.acknowledged = end;
        }
    }

    /// The request with this sequence was the last one and was certainly not accepted, so its sequence is free again.
    pub(super) fn give_back(&mut self, sequence: i32) {
        self.next = sequence;
    }

    /// Whether `expected`, the sequence that a node expects instead of `sequence`, proves that the node has not stored a
    /// request with `sequence`: it has everything that was acknowledged, so it has not evicted the producer, and a record
    /// between that and `sequence` is missing.
    pub(super) fn proves_not_stored(&self, sequence: i32, expected: i64) -> bool {
        let Ok(expected) = i32::try_from(expected) else { return false };
        let ahead = distance(self.acknowledged, sequence);
        ahead < HALF && distance(self.acknowledged, expected) < ahead
    }

    /// Whether the sequence is the first of an epoch of which nothing was acknowledged. Every node accepts it.
    pub(super) fn is_first(&self, sequence: i32) -> bool {
        sequence == 0 && self.acknowledged == 0
    }

    /// The epoch can no longer be used; [`Self::begin`] must follow as soon as no outcome is unknown.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    /// Whether [`Self::end`] was called since the epoch began.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Begins the next epoch, or asks for a new id after the last one.
    pub(super) fn begin(&mut self) {
        let next = |id: v1::InitProducerResponse| v1::InitProducerResponse {
            epoch: id.epoch + i32::from(!mutant!("sequence-used-twice")),
            ..id
        };
        let identity = self.identity.filter(|id| id.epoch < EPOCH_MAX).map(next);
        *self = Self { identity, ..Self::default() };
    }
}

/// `sequence + count`. Sequences wrap around after 2147483647.
pub(super) fn advance(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_add(count) & i32::MAX
}

/// From `from` forward to `to`.
fn distance(from: i32, to: i32) -> i32 {
    to.wrapping_sub(from) & i32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(epoch: i32) -> Epoch {
        let mut new = Epoch::default();
        new.identify(v1::InitProducerResponse { producer_id: 7, epoch });
        new
    }

    #[test]
    fn an_expected_sequence_is_proof_only_between_what_was_acknowledged_and_the_request() {
        let mut epoch = epoch(0);
        // Nothing was acknowledged, and the node expects 0.
        assert!(epoch.proves_not_stored(3, 0) && epoch.proves_not_stored(3, 2));
        assert!(!epoch.proves_not_stored(0, 0) && !epoch.proves_not_stored(3, 4));
        epoch.acknowledge(0, 5);
        assert!(epoch.proves_not_stored(6, 5));
        // The node has evicted the producer, or has stored more than the request.
        assert!(!epoch.proves_not_stored(6, 0) && !epoch.proves_not_stored(6, 7) && !epoch.proves_not_stored(5, 0));
        // A request behind it was acknowledged.
        assert!(!epoch.proves_not_stored(3, 8) && !epoch.proves_not_stored(3, 0));
        assert!(!epoch.proves_not_stored(6, -1) && !epoch.proves_not_stored(6, 1 << 40));
    }

    #[test]
    fn sequences_wrap_and_an_older_acknowledgement_changes_nothing() {
        let mut epoch = Epoch { acknowledged: i32::MAX - 1, ..epoch(0) };
        epoch.acknowledge(i32::MAX - 1, 4);
        epoch.acknowledge(i32::MAX - 1, 1);
        assert_eq!(epoch.acknowledged, 2);
        assert!(epoch.proves_not_stored(4, 2) && !epoch.proves_not_stored(4, i64::from(i32::MAX)));
        epoch.give_back(i32::MAX);
        assert_eq!((epoch.take(2), epoch.take(1)), (i32::MAX, 1));
    }

    #[test]
    fn epochs_rise_and_after_the_last_an_id_is_needed() {
        let mut epoch = epoch(EPOCH_MAX - 1);
        epoch.take(9);
        epoch.end();
        epoch.begin();
        assert!(!epoch.is_over() && !epoch.needs_identity() && epoch.is_first(epoch.next));
        let last = v1::ProducerIdentity { producer_id: 7, epoch: EPOCH_MAX, sequence: 0 };
        assert_eq!(epoch.of_request(0), Some(last));
        epoch.begin();
        assert!(epoch.needs_identity() && epoch.of_request(0).is_none());
    }
}
