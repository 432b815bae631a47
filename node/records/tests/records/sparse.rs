//! Batches that records were taken out of: readable with their holes, and never accepted from outside.

use bytes::Bytes;
use chronicle_records::{
    BatchBuilder, BatchError, FirstSequence, ProducerTable, RecordError, SequenceCheck, check, check_shallow,
    parse_header, patch, split,
};

use crate::common::{CODECS, T0, around, limits, push, read, record};

/// A batch that takes these many offsets from `base` on, with records at some of them.
fn sparse(codec: chronicle_records::Compression, base: i64, offsets: i32, kept: &[i32]) -> Bytes {
    let mut builder = BatchBuilder::new(codec).with_producer(7, 0, 100);
    let mut next = 0;
    for &at in kept {
        builder.skip_offsets(at - next);
        push(&mut builder, &record(0, T0 + i64::from(at), None, Some(at.to_string().as_bytes()))).unwrap();
        next = at + 1;
    }
    builder.skip_offsets(offsets - next);
    let mut batch = builder.build().unwrap();
    patch(&mut batch, base, 3);
    batch.freeze()
}

#[test]
fn records_keep_their_offsets_and_the_batch_takes_all_that_it_took() {
    for codec in CODECS {
        for kept in [&[0, 1, 2, 3, 4][..], &[0, 4], &[4], &[0], &[1, 3], &[2], &[]] {
            let batch = sparse(codec, 40, 5, kept);
            let header = check_shallow(&batch).unwrap();
            assert_eq!((header.record_count as usize, header.offset_count()), (kept.len(), 5));
            assert_eq!((header.last_offset(), header.next_offset()), (44, 45));
            assert_eq!(header.is_dense(), kept.len() == 5);
            let found: Vec<_> = read(&batch).unwrap().into_iter().map(|r| (r.offset, r.timestamp, r.value)).collect();
            let text = |at: i32| Some(Bytes::from(at.to_string()));
            let expected: Vec<_> = kept.iter().map(|&at| (40 + i64::from(at), T0 + i64::from(at), text(at))).collect();
            assert_eq!(found, expected, "{codec:?}");
        }
    }
}

#[test]
fn a_batch_from_outside_must_have_a_record_at_every_offset() {
    for codec in CODECS {
        check(&sparse(codec, 0, 5, &[0, 1, 2, 3, 4]), &limits()).unwrap();
        for kept in [&[0, 4][..], &[0, 1, 2, 3], &[1, 2, 3, 4], &[]] {
            let error = check(&sparse(codec, 0, 5, kept), &limits()).unwrap_err();
            assert!(matches!(error, BatchError::Count { .. }), "{codec:?} {kept:?}: {error}");
        }
    }
}

#[test]
fn empty_batches_lie_among_others() {
    let batches = [sparse(CODECS[4], 0, 3, &[]), sparse(CODECS[0], 3, 2, &[1]), sparse(CODECS[1], 5, 1, &[])].concat();
    let found: Vec<_> = split(&batches.into()).map(|item| item.unwrap().0.next_offset()).collect();
    assert_eq!(found, [3, 5, 6]);
}

#[test]
fn offsets_that_go_back_or_leave_the_batch_are_refused() {
    // Attributes, timestamp delta, offset delta, key, value, header count, after their length of 6.
    let at = |delta: u8| [12, 0, 0, delta * 2, 1, 1, 0];
    // `around` says that the batch takes as many offsets as it has records.
    for (deltas, index, value) in [([0, 0], 1, 0), ([1, 0], 1, 0), ([0, 2], 1, 2), ([2, 3], 0, 2)] {
        let error = read(&around(CODECS[0], 2, &deltas.map(at).concat())).unwrap_err();
        let rule = "it must be above that of the record before, and at most the last of the batch";
        assert_eq!(
            error,
            BatchError::Record { index, error: RecordError::Value { field: "offset delta", value, rule } }
        );
    }
    // Bytes where no record is announced.
    let mut batch = sparse(CODECS[0], 0, 2, &[0]).to_vec();
    batch[57..61].copy_from_slice(&0_i32.to_be_bytes());
    assert!(matches!(read(&batch.into()), Err(BatchError::Leftover { count: 0, .. })));
}

#[test]
fn the_sequences_of_a_batch_do_not_depend_on_what_was_taken_out_of_it() {
    let mut table = ProducerTable::default();
    for (base, kept) in [(0, &[1, 3][..]), (5, &[])] {
        let mut header = parse_header(&sparse(CODECS[0], base, 5, kept)).unwrap();
        header.base_sequence = base as i32;
        assert_eq!(table.check(&header, FirstSequence::Zero, 0), SequenceCheck::Next);
        table.appended(&header, base, 0);
    }
    let mut again = parse_header(&sparse(CODECS[0], 0, 5, &[0, 1, 2, 3, 4])).unwrap();
    again.base_sequence = 5;
    assert_eq!(table.check(&again, FirstSequence::Zero, 0), SequenceCheck::Duplicate { base_offset: 5 });
    again.base_sequence = 10;
    assert_eq!(table.check(&again, FirstSequence::Zero, 0), SequenceCheck::Next);
}

#[test]
fn a_batch_that_takes_no_offset_cannot_be_built() {
    let mut builder = BatchBuilder::new(CODECS[0]);
    builder.skip_offsets(0);
    assert!(matches!(builder.build(), Err(BatchError::Count { .. })));
    let mut builder = BatchBuilder::new(CODECS[0]);
    builder.skip_offsets(i32::MAX);
    assert!(push(&mut builder, &record(0, T0, None, None)).is_err());
}
