//! Idempotent producers: the last sequence numbers of each producer (KIP-98).
//!
//! Every replica derives the table from the batch headers of committed entries, and the leader's sequencer keeps a copy
//! that runs ahead with what it has proposed. The fake nodes of the client's tests use the same table, so that they accept
//! what a node accepts. Only which idle producers are forgotten depends on the time at which this replica applied their
//! last batch.
//!
//! Kafka keeps five batches per producer; this table keeps runs: consecutive batches with contiguous sequences and
//! offsets merge into one run. A producer that has a partition to itself uses one run however far it pipelines, and a
//! repeated request is recognised anywhere in the stored runs.
//!
//! Two bounds limit its memory. A producer is forgotten only after it has been idle for [`ProducerLimits::keep_ms`], the
//! time in which it may still repeat a request: a new producer that finds no room is refused instead. And all producers
//! together have [`RUNS_FACTOR`] runs for each one allowed; beyond that the oldest runs of those with most are dropped, and
//! a repeat of them is known to be stored, without its offset.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::BatchHeader;

/// Sequence numbers are 31 bits and wrap to 0.
const SEQUENCE_MASK: i32 = i32::MAX;

/// Maximum number of runs per producer; the requests that a client may have in flight on one stream.
const RUNS_MAX: usize = 256;

/// Maximum number of runs of all producers, as a multiple of the maximum number of producers.
const RUNS_FACTOR: usize = 8;

/// Runs that every producer keeps: the batches that Kafka's clients may have in flight.
const RUNS_MIN: usize = 5;

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
    /// Stored before, at an offset that the table does not know any more: it is older than the runs that it keeps.
    Stored,
    /// The producer is new, and the table is full of producers that may still repeat a request.
    Full,
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
    /// Time of its last append, on the clock of the table's owner.
    #[serde(skip)]
    last_ms: u64,
}

/// What bounds the memory of a [`ProducerTable`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProducerLimits {
    /// Maximum number of producers; 0: no limit.
    pub producers: usize,
    /// Milliseconds for which a producer is remembered after its last append, at least.
    pub keep_ms: u64,
}

/// The producers of one partition.
///
/// Times are milliseconds on any clock that does not go back; the owner uses one clock for all calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerTable {
    producers: HashMap<i64, Producer>,
    #[serde(skip)]
    limits: ProducerLimits,
    /// Runs of all producers.
    #[serde(skip)]
    runs: usize,
    /// No producer's last append is before this time.
    #[serde(skip)]
    idle_since_ms: u64,
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
    /// An empty table.
    pub fn new(limits: ProducerLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Completes a table that was read from a checkpoint, which has neither limits nor times: every producer counts as active
    /// at `now_ms`.
    pub fn resume(&mut self, limits: ProducerLimits, now_ms: u64) {
        self.limits = limits;
        self.runs = self.producers.values().map(|producer| producer.runs.len()).sum();
        self.idle_since_ms = now_ms;
        self.producers.values_mut().for_each(|producer| producer.last_ms = now_ms);
        self.trim();
    }

    /// Checks a batch at `now_ms`. Batches without a producer id are always next. `first` is the rule for a producer that the
    /// table does not contain.
    pub fn check(&mut self, header: &BatchHeader, first: FirstSequence, now_ms: u64) -> SequenceCheck {
        if header.producer_id < 0 {
            return SequenceCheck::Next;
        }
        let Some(producer) = self.producers.get(&header.producer_id) else {
            return match first {
                FirstSequence::Zero if header.base_sequence != 0 => SequenceCheck::OutOfOrder { expected: 0 },
                FirstSequence::Zero | FirstSequence::Any if self.is_full(now_ms) => SequenceCheck::Full,
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
        let records = i64::from(header.offset_count());
        for run in producer.runs.iter().rev() {
            let skip = distance(run.sequence, header.base_sequence);
            if skip + records <= run.records {
                return SequenceCheck::Duplicate { base_offset: run.base_offset + skip };
            }
        }
        // An epoch begins at 0 and has no gaps, so that whatever comes before the oldest run is stored.
        let oldest = producer.runs.front().expect("a producer has at least one run").sequence;
        if first == FirstSequence::Zero && i64::from(header.base_sequence) + records <= i64::from(oldest) {
            return SequenceCheck::Stored;
        }
        SequenceCheck::OutOfOrder { expected }
    }

    /// Records that a batch was appended at `base_offset`. [`Self::check`] must have returned [`SequenceCheck::Next`] for it.
    pub fn appended(&mut self, header: &BatchHeader, base_offset: i64, now_ms: u64) {
        if header.producer_id < 0 {
            return;
        }
        let run = Run { sequence: header.base_sequence, base_offset, records: i64::from(header.offset_count()) };
        if let Some(producer) = self.producers.get_mut(&header.producer_id) {
            producer.last_ms = producer.last_ms.max(now_ms);
            let before = producer.runs.len();
            producer.add(header.producer_epoch, run);
            self.runs = self.runs + producer.runs.len() - before;
            self.trim();
            return;
        }
        if self.limits.producers > 0 && self.producers.len() >= self.limits.producers {
            self.forget_idle(now_ms);
        }
        if self.producers.is_empty() {
            self.idle_since_ms = now_ms;
        }
        let producer = Producer { epoch: header.producer_epoch, runs: VecDeque::from([run]), last_ms: now_ms };
        self.producers.insert(header.producer_id, producer);
        self.runs += 1;
        self.trim();
    }

    /// Whether there is no room for another producer.
    fn is_full(&mut self, now_ms: u64) -> bool {
        let ProducerLimits { producers, keep_ms } = self.limits;
        if producers == 0 || self.producers.len() < producers {
            return false;
        }
        if self.idle_since_ms.saturating_add(keep_ms) <= now_ms {
            self.idle_since_ms = self.producers.values().map(|producer| producer.last_ms).min().unwrap_or(now_ms);
        }
        self.idle_since_ms.saturating_add(keep_ms) > now_ms
    }

    /// Forgets a tenth of the producers, those that have been idle longest, as far as they may be forgotten.
    fn forget_idle(&mut self, now_ms: u64) {
        let idle = |producer: &Producer| producer.last_ms.saturating_add(self.limits.keep_ms) <= now_ms;
        let mut last: Vec<(u64, i64, i64)> = self
            .producers
            .iter()
            .filter(|(_, producer)| idle(producer))
            .map(|(id, producer)| (producer.last_ms, producer.runs.back().map_or(0, |run| run.base_offset), *id))
            .collect();
        last.sort_unstable();
        let forget = (self.producers.len() / 10).max(1);
        for (_, _, id) in last.into_iter().take(forget) {
            self.runs -= self.producers.remove(&id).map_or(0, |producer| producer.runs.len());
        }
    }

    /// Drops the older half of the runs of producers that have more than [`RUNS_MIN`], if there are too many.
    fn trim(&mut self) {
        if self.limits.producers == 0 || self.runs <= self.limits.producers.saturating_mul(RUNS_FACTOR) {
            return;
        }
        for producer in self.producers.values_mut() {
            let keep = (producer.runs.len() / 2).max(RUNS_MIN);
            let drop = producer.runs.len().saturating_sub(keep);
            producer.runs.drain(..drop);
            producer.runs.shrink_to_fit();
            self.runs -= drop;
        }
    }
}

impl Producer {
    /// Adds a batch: to the last run if it continues that one.
    fn add(&mut self, epoch: i16, run: Run) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.runs.clear();
        }
        match self.runs.back_mut() {
            Some(last)
                if last.base_offset + last.records == run.base_offset
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
                if self.runs.len() == RUNS_MAX {
                    self.runs.pop_front();
                }
                self.runs.push_back(run);
            }
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

    const KEEP_MS: u64 = 1000;

    fn table(producers: usize) -> ProducerTable {
        ProducerTable::new(ProducerLimits { producers, keep_ms: KEEP_MS })
    }

    fn check(table: &mut ProducerTable, header: &BatchHeader) -> SequenceCheck {
        table.check(header, FirstSequence::Zero, 0)
    }

    fn append(table: &mut ProducerTable, header: &BatchHeader, base_offset: i64) {
        table.appended(header, base_offset, 0);
    }

    #[test]
    fn a_repeated_batch_gets_its_first_offset_even_inside_a_merged_run() {
        let mut table = table(10);
        for (i, offset) in [(0, 100), (3, 103), (6, 106)] {
            let batch = header(1, 0, i, 3);
            assert_eq!(check(&mut table, &batch), SequenceCheck::Next);
            append(&mut table, &batch, offset);
        }
        assert_eq!(table.producers[&1].runs.len(), 1);
        assert_eq!(check(&mut table, &header(1, 0, 3, 3)), SequenceCheck::Duplicate { base_offset: 103 });
        assert_eq!(check(&mut table, &header(1, 0, 9, 1)), SequenceCheck::Next);
        assert_eq!(check(&mut table, &header(1, 0, 10, 1)), SequenceCheck::OutOfOrder { expected: 9 });
        // Half old, half new: not a repeated request.
        assert_eq!(check(&mut table, &header(1, 0, 8, 3)), SequenceCheck::OutOfOrder { expected: 9 });
    }

    #[test]
    fn a_new_producer_begins_at_0_unless_the_protocol_is_kafkas() {
        let mut table = table(10);
        let second = header(1, 0, 1, 1);
        assert_eq!(check(&mut table, &second), SequenceCheck::OutOfOrder { expected: 0 });
        assert_eq!(table.check(&second, FirstSequence::Any, 0), SequenceCheck::Next);
        assert_eq!(check(&mut table, &header(1, 7, 0, 1)), SequenceCheck::Next);
        assert_eq!(check(&mut table, &header(-1, -1, -1, 1)), SequenceCheck::Next);
        // Once known, it follows one rule in both protocols.
        append(&mut table, &second, 0);
        assert_eq!(table.check(&header(1, 0, 3, 1), FirstSequence::Any, 0), SequenceCheck::OutOfOrder { expected: 2 });
        assert_eq!(table.check(&header(1, 1, 3, 1), FirstSequence::Any, 0), SequenceCheck::OutOfOrder { expected: 0 });
    }

    #[test]
    fn interleaved_producers_are_distinguished() {
        let mut table = table(10);
        append(&mut table, &header(1, 0, 0, 1), 0);
        append(&mut table, &header(2, 0, 0, 1), 1);
        append(&mut table, &header(1, 0, 1, 1), 2);
        assert_eq!(check(&mut table, &header(1, 0, 0, 1)), SequenceCheck::Duplicate { base_offset: 0 });
        assert_eq!(check(&mut table, &header(1, 0, 1, 1)), SequenceCheck::Duplicate { base_offset: 2 });
        assert_eq!(check(&mut table, &header(2, 0, 0, 1)), SequenceCheck::Duplicate { base_offset: 1 });
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut table = table(10);
        append(&mut table, &header(1, 0, i32::MAX - 1, 1), 0);
        let last = header(1, 0, i32::MAX, 1);
        assert_eq!(check(&mut table, &last), SequenceCheck::Next);
        append(&mut table, &last, 1);
        assert_eq!(check(&mut table, &header(1, 0, 0, 2)), SequenceCheck::Next);
        append(&mut table, &header(1, 0, 0, 2), 2);
        assert_eq!(check(&mut table, &header(1, 0, i32::MAX, 1)), SequenceCheck::Duplicate { base_offset: 1 });
        assert_eq!(check(&mut table, &header(1, 0, 1, 1)), SequenceCheck::Duplicate { base_offset: 3 });
    }

    #[test]
    fn an_old_epoch_is_fenced_and_a_new_one_starts_at_zero() {
        let mut table = table(10);
        append(&mut table, &header(1, 3, 7, 1), 0);
        assert_eq!(check(&mut table, &header(1, 2, 8, 1)), SequenceCheck::Fenced { current: 3 });
        assert_eq!(check(&mut table, &header(1, 4, 8, 1)), SequenceCheck::OutOfOrder { expected: 0 });
        assert_eq!(check(&mut table, &header(1, 4, 0, 1)), SequenceCheck::Next);
        append(&mut table, &header(1, 4, 0, 1), 1);
        assert_eq!(check(&mut table, &header(1, 3, 8, 1)), SequenceCheck::Fenced { current: 4 });
    }

    #[test]
    fn a_producer_is_forgotten_only_when_it_has_been_idle_for_long_enough() {
        let mut table = table(20);
        for id in 0..20 {
            table.appended(&header(id, 0, 0, 1), id, id as u64);
        }
        let new = header(20, 0, 0, 1);
        assert_eq!(table.check(&new, FirstSequence::Zero, KEEP_MS - 1), SequenceCheck::Full);
        assert_eq!(table.check(&new, FirstSequence::Any, KEEP_MS - 1), SequenceCheck::Full);
        let repeated = header(0, 0, 0, 1);
        let stored = SequenceCheck::Duplicate { base_offset: 0 };
        assert_eq!(table.check(&repeated, FirstSequence::Zero, KEEP_MS - 1), stored);
        // Two have been idle for long enough, a tenth of all.
        assert_eq!(table.check(&new, FirstSequence::Zero, KEEP_MS + 5), SequenceCheck::Next);
        table.appended(&new, 20, KEEP_MS + 5);
        assert_eq!(table.producers.len(), 19);
        assert_eq!(
            table.check(&header(1, 0, 1, 1), FirstSequence::Zero, KEEP_MS + 5),
            SequenceCheck::OutOfOrder { expected: 0 }
        );
        assert_eq!(table.check(&header(1, 0, 1, 1), FirstSequence::Any, KEEP_MS + 5), SequenceCheck::Next);
        let kept = SequenceCheck::Duplicate { base_offset: 2 };
        assert_eq!(table.check(&header(2, 0, 0, 1), FirstSequence::Zero, KEEP_MS + 5), kept);
    }

    #[test]
    fn after_a_restart_every_producer_counts_as_active() {
        let mut table = table(2);
        for id in 0..2 {
            append(&mut table, &header(id, 0, 0, 1), id);
        }
        let mut restored = table.clone();
        restored.resume(table.limits, 10 * KEEP_MS);
        assert_eq!(restored.check(&header(2, 0, 0, 1), FirstSequence::Zero, 11 * KEEP_MS - 1), SequenceCheck::Full);
        assert_eq!(restored.check(&header(2, 0, 0, 1), FirstSequence::Zero, 11 * KEEP_MS), SequenceCheck::Next);
    }

    #[test]
    fn the_runs_of_all_producers_are_bounded_and_what_is_dropped_is_still_known_to_be_stored() {
        let mut table = table(20);
        let mut offset = 0;
        for sequence in 0..100 {
            for id in 0..20 {
                append(&mut table, &header(id, 0, sequence, 1), offset);
                offset += 1;
                assert!(table.runs <= 20 * RUNS_FACTOR);
                assert_eq!(table.runs, table.producers.values().map(|producer| producer.runs.len()).sum::<usize>());
            }
        }
        for id in 0..20 {
            assert_eq!(check(&mut table, &header(id, 0, 0, 1)), SequenceCheck::Stored);
            // The batches that Kafka's clients may have in flight.
            for sequence in 95..100 {
                let base_offset = i64::from(sequence) * 20 + id;
                assert_eq!(check(&mut table, &header(id, 0, sequence, 1)), SequenceCheck::Duplicate { base_offset });
            }
            assert_eq!(check(&mut table, &header(id, 0, 100, 1)), SequenceCheck::Next);
            assert_eq!(check(&mut table, &header(id, 0, 102, 1)), SequenceCheck::OutOfOrder { expected: 100 });
        }
        // A client of Kafka may have begun anywhere.
        let old = table.check(&header(0, 0, 0, 1), FirstSequence::Any, 0);
        assert_eq!(old, SequenceCheck::OutOfOrder { expected: 100 });
    }
}
