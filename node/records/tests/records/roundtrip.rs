//! What is built is read back; patching, splitting and sharing of memory.

use bytes::{Bytes, BytesMut};
use chronicle_records::{
    BatchBuilder, BatchError, Compression, HEADER_LEN, RecordError, check, check_shallow, parse_header, patch, records,
    split,
};

use crate::common::{CODECS, T0, build, limits, read, record, with_bytes};

#[test]
fn every_codec_round_trips_nulls_empties_headers_and_blocks_larger_than_its_own() {
    let mut all = vec![
        record(0, T0, Some(b"key"), Some(b"value")),
        record(1, T0 - 1_000, None, Some(b"")),
        record(2, i64::from(i32::MAX) * 1_000, Some(b""), None),
        // Larger than the blocks of snappy (32 KiB) and lz4 (64 KiB), and not compressible by repetition alone.
        record(3, -1, None, Some(&(0..300_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect::<Vec<_>>())),
    ];
    all[0].headers = vec![
        (Bytes::from("a"), Some(Bytes::from("1"))),
        (Bytes::from("a"), None),
        (Bytes::from("ü"), Some(Bytes::new())),
    ];
    for codec in CODECS {
        let batch = build(codec, &all);
        let header = check(&batch, &limits()).unwrap();
        assert_eq!(header.compression, codec);
        assert_eq!((header.record_count, header.last_offset_delta), (4, 3));
        assert_eq!((header.base_offset, header.leader_epoch, header.length), (0, -1, batch.len()));
        assert_eq!((header.base_timestamp, header.max_timestamp), (T0, i64::from(i32::MAX) * 1_000));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (-1, -1, -1));
        assert_eq!(read(&batch).unwrap(), all, "{codec}");
    }
}

#[test]
fn the_producer_is_stored() {
    let mut builder = BatchBuilder::new(Compression::None).with_producer(1 << 40, 7, 1_000_000);
    builder.push(T0, None, None, []).unwrap();
    let header = check(&builder.build().unwrap(), &limits()).unwrap();
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (1 << 40, 7, 1_000_000));
}

#[test]
fn patching_moves_offsets_and_keeps_the_crc_right() {
    for codec in CODECS {
        let mut batch =
            BytesMut::from(&build(codec, &[record(0, T0, None, Some(b"a")), record(1, T0, None, None)])[..]);
        patch(&mut batch, 1 << 33, 9);
        let header = check(&batch, &limits()).unwrap();
        assert_eq!((header.base_offset, header.last_offset(), header.leader_epoch), (1 << 33, (1 << 33) + 1, 9));
        let offsets: Vec<_> = read(&batch.freeze()).unwrap().iter().map(|record| record.offset).collect();
        assert_eq!(offsets, [1 << 33, (1 << 33) + 1]);
    }
}

#[test]
fn the_builder_counts_the_bytes_that_it_will_build() {
    let mut builder = BatchBuilder::with_capacity(Compression::None, 100);
    assert!(builder.is_empty());
    assert_eq!((builder.len(), builder.bytes()), (0, HEADER_LEN));
    builder.push(T0, Some(b"k"), Some(&[7; 1000]), [("h", Some(&b"v"[..]))]).unwrap();
    builder.push(T0, None, None, []).unwrap();
    let (len, bytes) = (builder.len(), builder.bytes());
    let batch = builder.build().unwrap();
    assert_eq!((len, bytes), (2, batch.len()));
}

#[test]
fn an_empty_batch_is_not_built() {
    let error = BatchBuilder::new(Compression::Zstd).build().unwrap_err();
    assert!(matches!(error, BatchError::Count { field: "record count", value: 0, .. }), "{error}");
}

#[test]
fn a_refused_record_leaves_the_builder_as_it_was() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(i64::MIN, None, Some(b"first"), []).unwrap();
    let error = builder.push(i64::MAX, None, Some(b"too late"), []).unwrap_err();
    assert!(
        matches!(error, BatchError::Record { index: 1, error: RecordError::Value { field: "timestamp", .. } }),
        "{error}"
    );
    builder.push(-1, None, Some(b"second"), []).unwrap();
    let batch = builder.build().unwrap().freeze();
    let header = check(&batch, &limits()).unwrap();
    assert_eq!((header.base_timestamp, header.max_timestamp), (i64::MIN, -1));
    let values: Vec<_> = read(&batch).unwrap().into_iter().map(|record| record.value.unwrap()).collect();
    assert_eq!(values, ["first", "second"]);
}

#[test]
fn records_of_an_uncompressed_batch_share_its_memory() {
    let batch = build(Compression::None, &[record(0, T0, Some(b"key"), Some(b"value"))]);
    let record = records(&batch, &limits()).unwrap().next().unwrap().unwrap();
    assert!(batch.as_ptr_range().contains(&record.value.unwrap().as_ptr()));
    assert!(batch.as_ptr_range().contains(&record.key.unwrap().as_ptr()));
}

#[test]
fn with_append_time_every_record_has_the_timestamp_of_the_append() {
    let batch = build(Compression::None, &[record(0, T0, None, None), record(1, T0 + 5, None, None)]);
    let batch = with_bytes(&batch, 21, &8u16.to_be_bytes());
    assert!(check(&batch, &limits()).unwrap().timestamp_type_log_append);
    assert!(read(&batch).unwrap().iter().all(|record| record.timestamp == T0 + 5));
}

#[test]
fn attribute_bits_are_distinguished() {
    let batch = build(Compression::None, &[record(0, T0, None, None)]);
    let flags = |bits: u16| {
        let header = check_shallow(&with_bytes(&batch, 21, &bits.to_be_bytes())).unwrap();
        assert_eq!(header.attributes, bits);
        (header.timestamp_type_log_append, header.is_transactional, header.is_control)
    };
    assert_eq!(flags(0), (false, false, false));
    assert_eq!(flags(1 << 3), (true, false, false));
    assert_eq!(flags(1 << 4), (false, true, false));
    assert_eq!(flags(1 << 5), (false, false, true));
}

#[test]
fn split_walks_batches_end_to_end_without_copying() {
    let batches: Vec<_> = CODECS.iter().map(|codec| build(*codec, &[record(0, T0, None, Some(b"v"))])).collect();
    let all = Bytes::from(batches.concat());
    let found: Vec<_> = split(&all).map(Result::unwrap).collect();
    assert_eq!(found.len(), batches.len());
    for ((header, bytes), batch) in found.iter().zip(&batches) {
        assert_eq!(bytes, batch);
        assert_eq!(*header, parse_header(batch).unwrap());
        assert!(all.as_ptr_range().contains(&bytes.as_ptr()));
    }
    assert_eq!(split(&Bytes::new()).count(), 0);
}

#[test]
fn split_gives_the_whole_batches_then_one_error_and_ends() {
    let batch = build(Compression::None, &[record(0, T0, None, Some(b"value"))]);
    let cut = Bytes::from([&batch[..], &batch[..batch.len() - 1]].concat());
    let found: Vec<_> = split(&cut).collect();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].as_ref().unwrap().1, batch);
    let error = found[1].as_ref().unwrap_err();
    assert_eq!(*error, BatchError::TooShort { what: "batch", needed: batch.len(), actual: batch.len() - 1 }, "{error}");
}
