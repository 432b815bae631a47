//! Properties over arbitrary records and arbitrary bytes.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use chronicle_records::{Compression, Limits, Record, check, check_shallow, parse_header, records, split};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::common::{CODECS, T0, around, build, limits, read, record};

fn codec() -> impl Strategy<Value = Compression> {
    prop::sample::select(CODECS.to_vec())
}

fn payload() -> impl Strategy<Value = Option<Bytes>> {
    let bytes = prop_oneof![
        8 => vec(any::<u8>(), 0..80).prop_map(Bytes::from),
        1 => (any::<u8>(), 0..70_000usize).prop_map(|(byte, length)| Bytes::from(vec![byte; length])),
    ];
    option::of(bytes)
}

fn some_record() -> impl Strategy<Value = Record> {
    let header = (any::<String>().prop_map(Bytes::from), option::of(vec(any::<u8>(), 0..20).prop_map(Bytes::from)));
    (T0 / 2..T0 * 2, payload(), payload(), vec(header, 0..4)).prop_map(|(timestamp, key, value, headers)| Record {
        offset: 0,
        timestamp,
        key,
        value,
        headers,
    })
}

/// Calls everything that takes bytes from outside; they may refuse, not panic.
fn touch(bytes: Bytes) {
    let tight = Limits { max_batch_bytes: 1 << 20, max_decompressed_bytes: 1 << 20, max_records: 1 << 12 };
    let _ = parse_header(&bytes);
    let _ = check_shallow(&bytes);
    let checked = check(&bytes, &tight);
    let read = records(&bytes, &tight).and_then(|records| records.collect::<Result<Vec<_>, _>>());
    if let Ok(header) = checked {
        assert_eq!(read.unwrap().len(), header.record_count as usize, "what is accepted must be readable");
    }
    for (header, batch) in split(&bytes).flatten() {
        assert_eq!(header.length, batch.len());
    }
}

static SAMPLES: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let mut first = record(0, T0, Some(b"key"), Some(b"value value value value"));
    first.headers = vec![(Bytes::from("name"), Some(Bytes::from("value")))];
    let all = [first, record(1, T0 + 9, None, Some(&[b'x'; 300]))];
    CODECS.iter().map(|codec| build(*codec, &all)).collect()
});

#[test]
fn every_single_flipped_bit_under_the_crc_is_refused() {
    for batch in SAMPLES.iter() {
        for bit in 21 * 8..batch.len() * 8 {
            let mut damaged = BytesMut::from(&batch[..]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check_shallow(&damaged).is_err(), "bit {bit}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_records_round_trip(codec in codec(), mut all in vec(some_record(), 1..20)) {
        for (index, record) in all.iter_mut().enumerate() {
            record.offset = index as i64;
        }
        let batch = build(codec, &all);
        let header = check(&batch, &limits()).unwrap();
        prop_assert_eq!(header.max_timestamp, all.iter().map(|record| record.timestamp).max().unwrap());
        prop_assert_eq!(read(&batch).unwrap(), all);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        touch(bytes.into());
    }

    #[test]
    fn arbitrary_records_under_a_sound_header_never_panic(
        codec in codec(), count in 1..5i32, packed in vec(any::<u8>(), 0..200),
    ) {
        touch(around(codec, count, &packed));
    }

    #[test]
    fn damaged_batches_under_a_right_crc_never_panic(
        sample in 0..5usize, damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let whole = &SAMPLES[sample];
        let mut packed = BytesMut::from(&whole[61..]);
        for (at, byte) in damage {
            let at = at.index(packed.len());
            packed[at] = byte;
        }
        if let Some(cut) = cut {
            packed.truncate(cut.index(packed.len()));
        }
        touch(around(CODECS[sample], 2, &packed));
    }

    #[test]
    fn a_damaged_byte_under_the_crc_is_refused(
        sample in 0..5usize, at in any::<prop::sample::Index>(), xor in 1..=255u8,
    ) {
        let mut batch = BytesMut::from(&SAMPLES[sample][..]);
        let at = 21 + at.index(batch.len() - 21);
        batch[at] ^= xor;
        prop_assert!(check_shallow(&batch).is_err());
    }
}
