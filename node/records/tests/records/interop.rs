//! Against other implementations: the kafka-protocol crate in both directions, reference tools, and bytes from other
//! projects' tests.

use bytes::{Bytes, BytesMut};
use chronicle_records::{BatchBuilder, Compression, Record, check};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression as TheirCompression, Record as TheirRecord, RecordBatchDecoder, RecordBatchEncoder,
    RecordEncodeOptions, TimestampType,
};

use crate::common::{T0, around, limits, push, read, record};

/// The codecs that kafka-protocol brings without a C library of its own.
const SHARED: [(Compression, TheirCompression); 4] = [
    (Compression::None, TheirCompression::None),
    (Compression::Gzip, TheirCompression::Gzip),
    (Compression::Snappy, TheirCompression::Snappy),
    (Compression::Zstd, TheirCompression::Zstd),
];

/// The records of `vectors/make.py`, at the offset it gives them.
fn vector_records() -> Vec<Record> {
    let text = "chronicle ".repeat(20_000);
    let mut all = vec![
        record(40, T0, Some(b"k"), Some(text.as_bytes())),
        record(41, T0 + 5, None, Some(b"")),
        record(42, T0 - 7, Some(b""), None),
    ];
    all[0].headers = vec![(Bytes::from("h"), Some(Bytes::from("v"))), (Bytes::from("n"), None)];
    all[2].headers = vec![(Bytes::from("ü"), Some(Bytes::new()))];
    all
}

fn theirs(records: &[Record], base_sequence: i32) -> Vec<TheirRecord> {
    records
        .iter()
        .enumerate()
        .map(|(index, record)| TheirRecord {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: 77,
            producer_epoch: 3,
            timestamp_type: TimestampType::Creation,
            offset: record.offset,
            sequence: base_sequence + index as i32,
            timestamp: record.timestamp,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record
                .headers
                .iter()
                .map(|(name, value)| (StrBytes::try_from(name.clone()).unwrap(), value.clone()))
                .collect(),
        })
        .collect()
}

#[test]
fn what_we_build_kafka_protocol_reads() {
    let all = vector_records();
    for (ours, codec) in SHARED {
        let mut builder = BatchBuilder::new(ours).with_producer(77, 3, 12);
        for record in &all {
            push(&mut builder, record).unwrap();
        }
        let mut batch = builder.build().unwrap();
        chronicle_records::patch(&mut batch, 40, -1);
        let set = RecordBatchDecoder::decode(&mut batch.freeze()).unwrap();
        assert_eq!(set.compression, codec);
        assert_eq!(set.records, theirs(&all, 12), "{ours}");
    }
}

#[test]
fn what_kafka_protocol_builds_we_read() {
    let all = vector_records();
    for (ours, codec) in SHARED {
        let mut batch = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: codec };
        RecordBatchEncoder::encode(&mut batch, &theirs(&all, 12), &options).unwrap();
        let batch = batch.freeze();
        let header = check(&batch, &limits()).unwrap();
        assert_eq!(header.compression, ours);
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (77, 3, 12));
        assert_eq!((header.base_offset, header.record_count), (40, 3));
        assert_eq!(read(&batch).unwrap(), all, "{ours}");
    }
}

#[test]
fn uncompressed_bytes_are_the_same_as_those_of_kafka_protocol() {
    let all = [record(0, T0, Some(b"key"), Some(b"value")), record(1, T0 + 70, None, None)];
    let mut expected = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: TheirCompression::None };
    RecordBatchEncoder::encode(&mut expected, &theirs(&all, 0), &options).unwrap();
    let mut builder = BatchBuilder::new(Compression::None).with_producer(77, 3, 0);
    for record in &all {
        push(&mut builder, record).unwrap();
    }
    assert_eq!(builder.build().unwrap(), expected);
}

#[test]
fn batches_of_the_reference_tools_are_read() {
    for (name, batch, codec) in [
        ("gzip", &include_bytes!("vectors/gzip.batch")[..], Compression::Gzip),
        ("lz4, independent blocks, block checksums", include_bytes!("vectors/lz4-independent.batch"), Compression::Lz4),
        ("lz4, linked blocks", include_bytes!("vectors/lz4-linked.batch"), Compression::Lz4),
        ("lz4, one large block", include_bytes!("vectors/lz4-4MiB.batch"), Compression::Lz4),
        ("zstd", include_bytes!("vectors/zstd.batch"), Compression::Zstd),
        ("zstd, level 19, checksum", include_bytes!("vectors/zstd-19.batch"), Compression::Zstd),
    ] {
        let header = check(batch, &limits()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(header.compression, codec, "{name}");
        assert_eq!((header.base_offset, header.last_offset(), header.leader_epoch), (40, 42, 6), "{name}");
        assert_eq!((header.base_timestamp, header.max_timestamp), (T0, T0 + 5), "{name}");
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (77, 3, 12), "{name}");
        assert_eq!(read(&Bytes::from_static(batch)).unwrap(), vector_records(), "{name}");
    }
}

/// From the tests of the kafka-protocol crate (`compression/snappy.rs`), which has them from Kafka: one record with the
/// value `sdfdsf`.
#[test]
fn snappy_from_the_java_client_is_read_framed_and_raw() {
    let framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x0f\x0d\x30\x18\0\0\0\x01\x0csdfdsf\0";
    for packed in [&framed[..], &framed[20..]] {
        let batch = around(Compression::Snappy, 1, packed);
        check(&batch, &limits()).unwrap();
        assert_eq!(read(&batch).unwrap(), [record(0, T0, None, Some(b"sdfdsf"))]);
    }
}
