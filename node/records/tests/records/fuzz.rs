//! Mutated batches: whatever comes in, the answer is records or an error, within limits of memory.

use bytes::Bytes;
use chronicle_fuzz::{CountingAllocator, Fuzz};
use chronicle_records::{FirstSequence, Limits, ProducerTable, check, check_shallow, records, split};

use crate::common::*;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Small, so that an allocation beyond them shows.
const LIMITS: Limits = Limits { max_batch_bytes: 1 << 20, max_decompressed_bytes: 1 << 20, max_records: 1000 };
/// What a batch may cost: its unpacked records, a buffer that grows to that by doubling, and the tables of a codec.
const COST: usize = 4 << 20;

fn decode(bytes: &[u8]) -> String {
    let bytes = Bytes::copy_from_slice(bytes);
    let shallow = check_shallow(&bytes).map(|_| ());
    let checked = check(&bytes, &LIMITS);
    if checked.is_ok() {
        assert_eq!(shallow, Ok(()), "what is right as a whole has a right header");
    }
    let (mut count, mut broken) = (0, None);
    for batch in split(&bytes) {
        let Ok((header, batch)) = batch else { break };
        let _ = ProducerTable::default().check(&header, FirstSequence::Zero, 0);
        match records(&batch, &LIMITS) {
            Ok(found) => {
                for record in found {
                    match record {
                        Ok(_) => count += 1,
                        Err(error) => broken = Some(error),
                    }
                }
            }
            Err(error) => broken = Some(error),
        }
    }
    if let (Ok(header), None) = (&checked, &broken) {
        assert!(count >= header.record_count, "a checked batch has the records that its header counts");
    }
    format!("{:?}, {broken:?}", checked.err())
}

/// Makes the length and the CRC of the first batch right.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < 61 {
        return;
    }
    bytes[16] = 2;
    let length = (bytes.len() as i32 - 12).to_be_bytes();
    bytes[8..12].copy_from_slice(&length);
    let crc = crc32c::crc32c(&bytes[21..]).to_be_bytes();
    bytes[17..21].copy_from_slice(&crc);
}

#[test]
fn mutated_batches_are_read_or_refused() {
    let all: Vec<_> = (0..6_i64)
        .map(|n| {
            record(n, T0 + n, (n % 2 == 0).then_some(b"key"), (n != 3).then_some(&b"a value, a value, a value"[..]))
        })
        .collect();
    let mut fuzz = Fuzz::new("record-batches").repair(repair).allowance(32, COST);
    for codec in CODECS {
        fuzz = fuzz.seed(build(codec, &all));
    }
    let two = [build(CODECS[0], &all[..1]), build(CODECS[1], &all[1..])].concat();
    fuzz.seed(two).run(decode);
}
