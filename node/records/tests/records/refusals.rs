//! Each rule has a batch that breaks only it, and an error that names it.

use std::io::Write;

use bytes::{Bytes, BytesMut};
use chronicle_records::{
    BatchError, Compression, Limits, MAX_RECORD_HEADERS, RecordError, check, check_shallow, parse_header, records,
};

use crate::common::{CODECS, T0, around, build, limits, read, record, with_bytes};

fn sample() -> Bytes {
    build(Compression::None, &[record(0, T0, Some(b"key"), Some(b"value")), record(1, T0, None, None)])
}

fn refused(batch: &[u8]) -> BatchError {
    check(batch, &limits()).unwrap_err()
}

/// The error of a batch of one uncompressed record with this body (what follows its length).
fn refused_record(body: &[u8]) -> RecordError {
    assert!(body.len() < 64);
    let packed = [&[body.len() as u8 * 2], body].concat();
    let batch = around(Compression::None, 1, &packed);
    let error = refused(&batch);
    assert_eq!(read(&batch).unwrap_err(), error, "reading and checking must agree");
    match error {
        BatchError::Record { index: 0, error } => error,
        other => panic!("{other}"),
    }
}

#[test]
fn a_header_cut_anywhere_is_refused() {
    let batch = sample();
    for length in 0..batch.len() {
        let error = check_shallow(&batch[..length]).unwrap_err();
        assert!(matches!(error, BatchError::TooShort { actual, .. } if actual == length), "{length}: {error}");
    }
}

#[test]
fn older_message_formats_are_refused_by_name_even_when_shorter_than_a_header() {
    for magic in [0, 1, 3, -1i8] {
        let mut batch = BytesMut::from(&sample()[..20]);
        batch[16] = magic as u8;
        assert_eq!(parse_header(&batch).unwrap_err(), BatchError::Magic { value: magic });
    }
}

#[test]
fn lengths_that_do_not_cover_the_header_are_refused() {
    for length in [i32::MIN, -1, 0, 48] {
        let error = refused(&with_bytes(&sample(), 8, &length.to_be_bytes()));
        assert!(matches!(error, BatchError::Length { value, .. } if value == i64::from(length)), "{error}");
    }
}

#[test]
fn a_length_past_the_bytes_is_refused_without_allocating_it() {
    let error = refused(&with_bytes(&sample(), 8, &i32::MAX.to_be_bytes()));
    assert!(matches!(error, BatchError::TooShort { what: "batch", .. }), "{error}");
}

#[test]
fn bytes_behind_the_batch_are_refused_by_check_only() {
    let mut batch = BytesMut::from(&sample()[..]);
    batch.extend_from_slice(b"x");
    assert!(parse_header(&batch).is_ok());
    let error = refused(&batch);
    assert!(matches!(error, BatchError::Length { .. }), "{error}");
}

#[test]
fn the_crc_error_names_both_checksums() {
    let mut batch = BytesMut::from(&sample()[..]);
    let actual = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&0xdead_beef_u32.to_be_bytes());
    let error = refused(&batch);
    assert_eq!(error, BatchError::Crc { expected: 0xdead_beef, actual });
    assert!(error.to_string().contains("0xdeadbeef"), "{error}");
}

#[test]
fn unknown_codecs_are_refused() {
    for codec in 5..=7u16 {
        let error = refused(&with_bytes(&sample(), 21, &codec.to_be_bytes()));
        assert_eq!(error, BatchError::UnknownCompression(codec as u8));
    }
}

#[test]
fn counts_that_contradict_each_other_are_refused() {
    for (at, value, named) in [
        (57, 0, "record count"),
        (57, -1, "record count"),
        (57, i32::MIN, "record count"),
        (57, 3, "last offset delta"),
        (23, 0, "last offset delta"),
        (23, -1, "last offset delta"),
    ] {
        let error = refused(&with_bytes(&sample(), at, &value.to_be_bytes()));
        assert!(matches!(error, BatchError::Count { field, .. } if field == named), "{at} {value}: {error}");
    }
}

#[test]
fn offsets_that_overflow_are_refused() {
    let error = refused(&with_bytes(&sample(), 0, &(i64::MAX - 1).to_be_bytes()));
    assert!(matches!(error, BatchError::Count { field: "base offset", .. }), "{error}");
    check(&with_bytes(&sample(), 0, &(i64::MAX - 2).to_be_bytes()), &limits()).unwrap();
}

#[test]
fn more_or_fewer_records_than_announced_are_refused() {
    let packed = &sample()[61..];
    let error = refused(&around(Compression::None, 3, packed));
    assert_eq!(error, BatchError::Record { index: 2, error: RecordError::Varint { field: "record length", bits: 32 } });
    let batch = around(Compression::None, 1, packed);
    let error = refused(&batch);
    assert!(matches!(error, BatchError::Leftover { count: 1, .. }), "{error}");
    let read: Vec<_> = records(&batch, &limits()).unwrap().collect();
    assert!(read[0].is_ok());
    assert_eq!(read[1..], [Err(error)]);
}

#[test]
fn each_field_of_a_record_is_checked() {
    use RecordError::*;
    // attributes, timestamp delta, offset delta, key, value, header count: an empty record.
    assert!(check(&around(Compression::None, 1, &[12, 0, 0, 0, 1, 1, 0]), &limits()).is_ok());

    assert_eq!(refused_record(&[]), TooShort { field: "record attributes", needed: 1, actual: 0 });
    assert_eq!(refused_record(&[0, 0x80]), Varint { field: "timestamp delta", bits: 64 });
    assert_eq!(refused_record(&[0, 0, 0x80]), Varint { field: "offset delta", bits: 32 });
    assert!(matches!(refused_record(&[0, 0, 2, 1, 1, 0]), Value { field: "offset delta", value: 1, .. }));
    assert!(matches!(refused_record(&[0, 0, 1, 1, 1, 0]), Value { field: "offset delta", value: -1, .. }));
    assert!(matches!(refused_record(&[0, 0, 0, 3, 1, 0]), Value { field: "key", value: -2, .. }));
    assert_eq!(refused_record(&[0, 0, 0, 8, 1, 0]), TooShort { field: "key", needed: 4, actual: 2 });
    assert!(matches!(refused_record(&[0, 0, 0, 1, 3, 0]), Value { field: "value", value: -2, .. }));
    assert_eq!(refused_record(&[0, 0, 0, 1, 2]), TooShort { field: "value", needed: 1, actual: 0 });
    assert_eq!(refused_record(&[0, 0, 0, 1, 1]), Varint { field: "header count", bits: 32 });
    assert!(matches!(refused_record(&[0, 0, 0, 1, 1, 1]), Value { field: "header count", value: -1, .. }));
    assert!(matches!(refused_record(&[0, 0, 0, 1, 1, 2, 1, 1]), Value { field: "header name", value: -1, .. }));
    assert_eq!(refused_record(&[0, 0, 0, 1, 1, 2, 2, 0xff, 1]), HeaderName { valid_up_to: 0 });
    assert_eq!(refused_record(&[0, 0, 0, 1, 1, 2, 0]), Varint { field: "header value", bits: 32 });
    assert!(matches!(refused_record(&[0, 0, 0, 1, 1, 2, 0, 3]), Value { field: "header value", value: -2, .. }));
    assert_eq!(refused_record(&[0, 0, 0, 1, 1, 0, 0]), Leftover { bytes: 1 });
}

#[test]
fn a_record_length_past_the_batch_or_below_zero_is_refused() {
    let error = refused(&around(Compression::None, 1, &[14, 0, 0, 0, 1, 1, 0]));
    assert_eq!(
        error,
        BatchError::Record { index: 0, error: RecordError::TooShort { field: "record", needed: 7, actual: 6 } }
    );
    let error = refused(&around(Compression::None, 1, &[1]));
    assert!(
        matches!(error, BatchError::Record { error: RecordError::Value { field: "record length", value: -1, .. }, .. }),
        "{error}"
    );
}

#[test]
fn a_timestamp_that_overflows_is_refused() {
    let batch = build(Compression::None, &[record(0, 0, None, None), record(1, 1, None, None)]);
    let batch = with_bytes(&batch, 27, &i64::MAX.to_be_bytes());
    let error = refused(&batch);
    assert!(
        matches!(
            error,
            BatchError::Record { index: 1, error: RecordError::Value { field: "timestamp delta", value: 1, .. } }
        ),
        "{error}"
    );
    assert_eq!(read(&batch).unwrap_err(), error);
}

#[test]
fn a_record_with_too_many_headers_is_neither_built_nor_accepted() {
    let mut full = record(0, T0, None, None);
    full.headers = vec![(Bytes::new(), None); MAX_RECORD_HEADERS];
    assert_eq!(read(&build(Compression::None, &[full.clone()])).unwrap()[0].headers.len(), MAX_RECORD_HEADERS);

    full.headers.push((Bytes::new(), None));
    let mut builder = chronicle_records::BatchBuilder::new(Compression::None);
    let error = crate::common::push(&mut builder, &full).unwrap_err();
    assert!(
        matches!(error, BatchError::Record { error: RecordError::Value { field: "header count", .. }, .. }),
        "{error}"
    );
    assert_eq!(
        refused_record(&[0, 0, 0, 1, 1, 0x82, 0x80, 0x02]).to_string(),
        "header count is 16385: it must be from 0 to 16,384"
    );
}

#[test]
fn limits_hold_to_the_byte_and_to_the_record() {
    for codec in CODECS {
        let batch = build(codec, &[record(0, T0, None, Some(&[b'x'; 10_000])), record(1, T0, None, None)]);
        let plain = build(Compression::None, &read(&batch).unwrap()).len() - 61;
        let exact = Limits { max_batch_bytes: batch.len(), max_decompressed_bytes: plain, max_records: 2 };
        check(&batch, &exact).unwrap_or_else(|error| panic!("{codec}: {error}"));

        let error = check(&batch, &Limits { max_batch_bytes: batch.len() - 1, ..exact }).unwrap_err();
        assert_eq!(error, BatchError::TooLarge { what: "batch", bytes: batch.len(), limit: batch.len() - 1 });
        let error = check(&batch, &Limits { max_records: 1, ..exact }).unwrap_err();
        assert_eq!(error, BatchError::TooManyRecords { count: 2, limit: 1 });
        if codec != Compression::None {
            let tight = Limits { max_decompressed_bytes: plain - 1, ..exact };
            let expected = BatchError::TooLarge { what: "unpacked data", bytes: plain, limit: plain - 1 };
            assert_eq!(check(&batch, &tight).unwrap_err(), expected, "{codec}");
            assert_eq!(records(&batch, &tight).unwrap_err(), expected, "{codec}");
        }
    }
}

#[test]
fn decompression_bombs_are_refused_at_the_limit() {
    let small = Limits { max_decompressed_bytes: 1 << 20, ..limits() };
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let bomb = build(codec, &[record(0, T0, None, Some(&vec![0; 24 << 20]))]);
        assert!(bomb.len() < 3 << 20, "{codec}: {}", bomb.len());
        let error = check(&bomb, &small).unwrap_err();
        assert_eq!(
            error,
            BatchError::TooLarge { what: "unpacked data", bytes: (1 << 20) + 1, limit: 1 << 20 },
            "{codec}"
        );
    }
}

#[test]
fn a_snappy_block_that_claims_more_than_it_can_hold_is_refused_before_it_is_allocated() {
    // Raw Snappy: a claim of 60 MiB and one literal byte.
    let error = refused(&around(Compression::Snappy, 1, &[0x80, 0x80, 0x80, 0x1e, 0x00, b'x']));
    assert!(matches!(&error, BatchError::Corrupt { codec: Compression::Snappy, reason } if reason.contains("claim")));
}

#[test]
fn compressed_data_cut_anywhere_is_refused() {
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let whole = build(codec, &[record(0, T0, Some(b"key"), Some(&[b'v'; 500]))]);
        for length in 61..whole.len() {
            let cut = around(codec, 1, &whole[61..length]);
            assert!(check(&cut, &limits()).is_err(), "{codec}: cut at {length} of {}", whole.len());
            assert!(read(&cut).is_err(), "{codec}: cut at {length} of {}", whole.len());
        }
    }
}

#[test]
fn bytes_or_a_second_stream_behind_the_compressed_data_are_refused() {
    for codec in [Compression::Gzip, Compression::Lz4, Compression::Zstd] {
        let whole = build(codec, &[record(0, T0, None, Some(b"value"))]);
        for extra in [&b"\0"[..], &whole[61..]] {
            let error = refused(&around(codec, 1, &[&whole[61..], extra].concat()));
            assert!(
                matches!(&error, BatchError::Corrupt { reason, .. } if reason.contains("follow the end")),
                "{codec}: {error}"
            );
        }
    }
}

#[test]
fn a_batch_that_names_the_wrong_codec_is_refused() {
    let all = [record(0, T0, Some(b"key"), Some(&[b'v'; 500]))];
    for real in CODECS {
        for named in CODECS.into_iter().filter(|named| *named != real) {
            let batch = around(named, 1, &build(real, &all)[61..]);
            assert!(check(&batch, &limits()).is_err(), "{real} as {named}");
        }
    }
}

#[test]
fn snappy_with_an_incompatible_version_or_a_bad_block_length_is_refused() {
    let good = build(Compression::Snappy, &[record(0, T0, None, Some(b"value"))]);
    for (at, bytes, named) in [
        (61 + 12, 0i32, "compatible version is 0"),
        (61 + 16, -1, "block length is -1"),
        (61 + 16, 999, "block length is 999"),
    ] {
        let error = refused(&with_bytes(&good, at, &bytes.to_be_bytes()));
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn lz4_frames_with_bad_checksums_sizes_or_flags_are_refused() {
    let vector = include_bytes!("vectors/lz4-4MiB.batch");
    let frame = 61;
    // The header checksum of the changed descriptor, so that only the flag itself is at fault.
    let with_flags = |flg: u8, bd: u8| {
        let checksum = (twox_hash::XxHash32::oneshot(0, &[flg, bd]) >> 8) as u8;
        refused(&with_bytes(vector, frame + 4, &[flg, bd, checksum])).to_string()
    };
    assert!(with_flags(0x24, 0x70).contains("FLG is 0x24"));
    assert!(with_flags(0x66, 0x70).contains("FLG is 0x66"));
    assert!(with_flags(0x65, 0x70).contains("dictionary"));
    assert!(with_flags(0x64, 0x30).contains("BD is 0x30"));
    assert!(with_flags(0x64, 0x71).contains("BD is 0x71"));

    let refused_at = |at, bytes: &[u8]| refused(&with_bytes(vector, at, bytes)).to_string();
    assert!(refused_at(frame, &[5]).contains("frame magic"));
    assert!(refused_at(frame + 6, &[0]).contains("header checksum"));
    assert!(refused_at(vector.len() - 1, &[vector[vector.len() - 1] ^ 1]).contains("content checksum"));
    let block_checksum = include_bytes!("vectors/lz4-independent.batch");
    let first_block = u32::from_le_bytes(block_checksum[68..72].try_into().unwrap()) as usize;
    let error = refused(&with_bytes(block_checksum, 72 + first_block, &[0; 4])).to_string();
    assert!(error.contains("block checksum"), "{error}");
}

#[test]
fn gzip_with_a_wrong_checksum_is_refused() {
    let good = build(Compression::Gzip, &[record(0, T0, None, Some(b"value"))]);
    let mut packed = good[61..].to_vec();
    let at = packed.len() - 8;
    packed[at] ^= 1;
    assert!(matches!(refused(&around(Compression::Gzip, 1, &packed)), BatchError::Corrupt { .. }));
}

#[test]
fn zstd_that_is_not_a_zstandard_frame_is_refused() {
    for bytes in [&b""[..], b"\x27\xb5\x2f\xfd\0\0\0\0\0", b"\x50\x2a\x4d\x18\0\0\0\0"] {
        let error = refused(&around(Compression::Zstd, 1, bytes));
        assert!(matches!(&error, BatchError::Corrupt { reason, .. } if reason.contains("magic")), "{error}");
    }
}

#[test]
fn raw_deflate_under_the_name_of_gzip_is_refused() {
    let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    raw.write_all(&[12, 0, 0, 0, 1, 1, 0]).unwrap();
    let error = refused(&around(Compression::Gzip, 1, &raw.finish().unwrap()));
    assert!(matches!(error, BatchError::Corrupt { codec: Compression::Gzip, .. }), "{error}");
}
