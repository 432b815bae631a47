//! Idempotent producers: the last sequence numbers of each producer (KIP-98).
//!
//! The table is a pure function of the log prefix: every replica derives it from the batch headers of committed entries,
//! and the leader's sequencer keeps a copy that runs ahead with what it has proposed. The fake nodes of the client's tests
//! use the same table, so that they accept what a node accepts.
//!
//! Kafka keeps five batches per producer; this table keeps runs: consecutive batches with contiguous sequences and
//! offsets merge into one run. A producer that has a partition to itself uses one run however far it pipelines, and a
//! repeated request is recognised anywhere in the stored runs.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::BatchHeader;

/// Sequence numbers are 31 bits and wrap to 0.
const SEQUENCE_MASK: i32 = i32::MAX;

/// Maximum number of runs per producer; the requests that a client may have in flight on one stream.
const RUNS_MAX: usize = 256;

/// A run is cut at its front when it grows past this many records, to keep sequence arithmetic within half the range.
const RUN_RECORDS_MAX: i64 = 1 << 29;

/// What a producer that the table does not contain may begin with. It is new, or its state was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstSequence {
    /// 0 only: the rule of `chronicle.v1`. A request that was sent behind one that was refused, or whose producer's state
    /// was evicted, is refused; the client begins a new epoch at 0.
    Zero,
    /// Any: the rule of Kafka's brokers, which their clients rely on. librdkafka does not begin a new epoch when its state
    /// was evicted.
    Any,
}

/// Result of checking a batch of an idempotent producer against the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceCheck {
    /// The next one: append it.
    Next,
    /// Stored before, at this base offset.
    Duplicate {
        /// Offset of its first record.
        base_offset: i64,
    },
    /// Its epoch is older than `current`.
    Fenced {
        /// The producer's epoch in the log.
        current: i16,
    },
    /// It is neither the next batch nor one of the stored ones.
    OutOfOrder {
        /// The next sequence number.
        expected: i32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    sequence: i32,
    base_offset: i64,
    records: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    epoch: i16,
    /// Oldest first, never empty.
    runs: VecDeque<Run>,
}

/// The producers of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerTable {
    producers: HashMap<i64, Producer>,
    /// Maximum number of producers; 0: no limit.
    #[serde(skip)]
    max: usize,
}

/// `sequence + records`, wrapping after `i32::MAX` to 0.
fn advance(sequence: i32, records: i64) -> i32 {
    ((i64::from(sequence) + records) & i64::from(SEQUENCE_MASK)) as i32
}

/// Distance from `from` forward to `to` in sequence space.
fn distance(from: i32, to: i32) -> i64 {
    i64::from(to.wrapping_sub(from) & SEQUENCE_MASK)
}

impl ProducerTable {
    /// An empty table. Beyond `max` producers it evicts those that have been idle longest.
    pub fn new(max: usize) -> Self {
        Self { producers: HashMap::new(), max }
    }

    /// Sets the limit of a table that was read from a checkpoint.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Checks a batch. Batches without a producer id are always next. `first` is the rule for a producer that the table does
    /// not contain.
    pub fn check(&self, header: &BatchHeader, first: FirstSequence) -> SequenceCheck {
        if header.producer_id < 0 {
            return SequenceCheck::Next;
        }
        let Some(producer) = self.producers.get(&header.producer_id) else {
            return match first {
                FirstSequence::Zero if header.base_sequence != 0 => SequenceCheck::OutOfOrder { expected: 0 },
                FirstSequence::Zero | FirstSequence::Any => SequenceCheck::Next,
            };
        };
        if header.producer_epoch < producer.epoch {
            return SequenceCheck::Fenced { current: producer.epoch };
        }
        if header.producer_epoch > producer.epoch {
            return if header.base_sequence == 0 {
                SequenceCheck::Next
            } else {
                SequenceCheck::OutOfOrder { expected: 0 }
            };
        }
        let last = producer.runs.back().expect("a producer has at least one run");
        let expected = advance(last.sequence, last.records);
        if header.base_sequence == expected {
            return SequenceCheck::Next;
        }
        let records = i64::from(header.record_count);
        for run in producer.runs.iter().rev() {
            let skip = distance(run.sequence, header.base_sequence);
            if skip + records <= run.records {
                return SequenceCheck::Duplicate { base_offset: run.base_offset + skip };
            }
        }
        SequenceCheck::OutOfOrder { expected }
    }

    /// Records that a batch was appended at `base_offset`. [`Self::check`] must have returned [`SequenceCheck::Next`] for it.
    pub fn appended(&mut self, header: &BatchHeader, base_offset: i64) {
        if header.producer_id < 0 {
            return;
        }
        let run = Run { sequence: header.base_sequence, base_offset, records: i64::from(header.record_count) };
        if let Some(producer) = self.producers.get_mut(&header.producer_id) {
            if producer.epoch != header.producer_epoch {
                producer.epoch = header.producer_epoch;
                producer.runs.clear();
            }
            match producer.runs.back_mut() {
                Some(last)
                    if last.base_offset + last.records == base_offset
                        && advance(last.sequence, last.records) == run.sequence =>
                {
                    last.records += run.records;
                    if last.records > RUN_RECORDS_MAX {
                        let cut = last.records / 2;
                        last.sequence = advance(last.sequence, cut);
                        last.base_offset += cut;
                        last.records -= cut;
                    }
                }
                _ => {
                    if producer.runs.len() == RUNS_MAX {
                        producer.runs.pop_front();
                    }
                    producer.runs.push_back(run);
                }
            }
            return;
        }
        if self.max > 0 && self.producers.len() >= self.max {
            self.evict_idle();
        }
        self.producers
            .insert(header.producer_id, Producer { epoch: header.producer_epoch, runs: VecDeque::from([run]) });
    }

    /// Evicts the tenth of the producers with the oldest last append, by offset.
    fn evict_idle(&mut self) {
        let mut last: Vec<(i64, i64)> =
            self.producers.iter().map(|(id, p)| (p.runs.back().map(|run| run.base_offset).unwrap_or(0), *id)).collect();
        last.sort_unstable();
        let drop = (self.producers.len() / 10).max(1);
        for (_, id) in last.into_iter().take(drop) {
            self.producers.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(producer_id: i64, epoch: i16, sequence: i32, records: i32) -> BatchHeader {
        let mut builder =
            crate::BatchBuilder::new(crate::Compression::None).with_producer(producer_id, epoch, sequence);
        for _ in 0..records {
            builder.push(0, None, Some(b"v"), std::iter::empty()).unwrap();
        }
        crate::parse_header(&builder.build().unwrap()).unwrap()
    }

    fn check(table: &ProducerTable, header: &BatchHeader) -> SequenceCheck {
        table.check(header, FirstSequence::Zero)
    }

    #[test]
    fn a_repeated_batch_gets_its_first_offset_even_inside_a_merged_run() {
        let mut table = ProducerTable::new(10);
        for (i, offset) in [(0, 100), (3, 103), (6, 106)] {
            let batch = header(1, 0, i, 3);
            assert_eq!(check(&table, &batch), SequenceCheck::Next);
            table.appended(&batch, offset);
        }
        assert_eq!(table.producers[&1].runs.len(), 1);
        assert_eq!(check(&table, &header(1, 0, 3, 3)), SequenceCheck::Duplicate { base_offset: 103 });
        assert_eq!(check(&table, &header(1, 0, 9, 1)), SequenceCheck::Next);
        assert_eq!(check(&table, &header(1, 0, 10, 1)), SequenceCheck::OutOfOrder { expected: 9 });
        // Half old, half new: not a repeated request.
        assert_eq!(check(&table, &header(1, 0, 8, 3)), SequenceCheck::OutOfOrder { expected: 9 });
    }

    #[test]
    fn a_new_producer_begins_at_0_unless_the_protocol_is_kafkas() {
        let mut table = ProducerTable::new(10);
        let second = header(1, 0, 1, 1);
        assert_eq!(check(&table, &second), SequenceCheck::OutOfOrder { expected: 0 });
        assert_eq!(table.check(&second, FirstSequence::Any), SequenceCheck::Next);
        assert_eq!(check(&table, &header(1, 7, 0, 1)), SequenceCheck::Next);
        assert_eq!(check(&table, &header(-1, -1, -1, 1)), SequenceCheck::Next);
        // Once known, it follows one rule in both protocols.
        table.appended(&second, 0);
        assert_eq!(table.check(&header(1, 0, 3, 1), FirstSequence::Any), SequenceCheck::OutOfOrder { expected: 2 });
        assert_eq!(table.check(&header(1, 1, 3, 1), FirstSequence::Any), SequenceCheck::OutOfOrder { expected: 0 });
    }

    #[test]
    fn interleaved_producers_are_distinguished() {
        let mut table = ProducerTable::new(10);
        table.appended(&header(1, 0, 0, 1), 0);
        table.appended(&header(2, 0, 0, 1), 1);
        table.appended(&header(1, 0, 1, 1), 2);
        assert_eq!(check(&table, &header(1, 0, 0, 1)), SequenceCheck::Duplicate { base_offset: 0 });
        assert_eq!(check(&table, &header(1, 0, 1, 1)), SequenceCheck::Duplicate { base_offset: 2 });
        assert_eq!(check(&table, &header(2, 0, 0, 1)), SequenceCheck::Duplicate { base_offset: 1 });
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut table = ProducerTable::new(10);
        table.appended(&header(1, 0, i32::MAX - 1, 1), 0);
        let last = header(1, 0, i32::MAX, 1);
        assert_eq!(check(&table, &last), SequenceCheck::Next);
        table.appended(&last, 1);
        assert_eq!(check(&table, &header(1, 0, 0, 2)), SequenceCheck::Next);
        table.appended(&header(1, 0, 0, 2), 2);
        assert_eq!(check(&table, &header(1, 0, i32::MAX, 1)), SequenceCheck::Duplicate { base_offset: 1 });
        assert_eq!(check(&table, &header(1, 0, 1, 1)), SequenceCheck::Duplicate { base_offset: 3 });
    }

    #[test]
    fn an_old_epoch_is_fenced_and_a_new_one_starts_at_zero() {
        let mut table = ProducerTable::new(10);
        table.appended(&header(1, 3, 7, 1), 0);
        assert_eq!(check(&table, &header(1, 2, 8, 1)), SequenceCheck::Fenced { current: 3 });
        assert_eq!(check(&table, &header(1, 4, 8, 1)), SequenceCheck::OutOfOrder { expected: 0 });
        assert_eq!(check(&table, &header(1, 4, 0, 1)), SequenceCheck::Next);
        table.appended(&header(1, 4, 0, 1), 1);
        assert_eq!(check(&table, &header(1, 3, 8, 1)), SequenceCheck::Fenced { current: 4 });
    }

    #[test]
    fn beyond_the_bound_the_idlest_are_evicted() {
        let mut table = ProducerTable::new(20);
        for id in 0..30 {
            table.appended(&header(id, 0, 0, 1), id);
        }
        assert!(table.producers.len() <= 20);
        assert_eq!(check(&table, &header(29, 0, 0, 1)), SequenceCheck::Duplicate { base_offset: 29 });
        let evicted = header(0, 0, 5, 1);
        assert_eq!(check(&table, &evicted), SequenceCheck::OutOfOrder { expected: 0 });
        assert_eq!(table.check(&evicted, FirstSequence::Any), SequenceCheck::Next);
        // It comes back with the next epoch.
        assert_eq!(check(&table, &header(0, 1, 0, 1)), SequenceCheck::Next);
    }
}
