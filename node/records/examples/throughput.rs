//! How fast one core builds, checks and reads batches. Prints one line for each codec and step.
//!
//! ```text
//! cargo run --release -p chronicle-records --example throughput
//! ```
//!
//! A batch is 1,000 records of 1 KiB with a key; the values are words drawn at random, which compress about as well as
//! log lines do. MB/s count the uncompressed bytes.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chronicle_records::{BatchBuilder, Compression, Limits, check, check_shallow, records};

const RECORDS: usize = 1_000;
const VALUE_BYTES: usize = 1_024;
const RUN: Duration = Duration::from_millis(400);

fn main() {
    let values: Vec<Vec<u8>> = (0..RECORDS).map(|seed| text(seed as u64 + 1)).collect();
    println!("{:8} {:14} {:>12} {:>10} {:>8}", "codec", "step", "records/s", "MB/s", "ratio");
    for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let batch = build(codec, &values);
        let plain = build(Compression::None, &values).len();
        let limits = Limits::default();
        let report = |step: &str, per_second: f64| {
            let ratio = plain as f64 / batch.len() as f64;
            println!(
                "{:8} {step:14} {:>12.0} {:>10.0} {ratio:>8.2}",
                codec.to_string(),
                per_second * RECORDS as f64,
                per_second * plain as f64 / 1e6
            );
        };
        report("build", rate(|| _ = black_box(build(codec, &values))));
        report("check", rate(|| _ = black_box(check(&batch, &limits).unwrap())));
        report("check_shallow", rate(|| _ = black_box(check_shallow(&batch).unwrap())));
        report(
            "records",
            rate(|| {
                for record in records(&batch, &limits).unwrap() {
                    black_box(record.unwrap());
                }
            }),
        );
    }
}

fn build(codec: Compression, values: &[Vec<u8>]) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(codec, values.len() * (VALUE_BYTES + 32));
    for (index, value) in values.iter().enumerate() {
        builder.push(1_700_000_000_000 + index as i64, Some(b"key-0123"), Some(value), []).unwrap();
    }
    builder.build().unwrap().freeze()
}

/// Words in an order given by a xorshift generator.
fn text(seed: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "append ",
        "commit ",
        "leader ",
        "follower ",
        "offset=",
        "term=",
        "INFO ",
        "WARN ",
        "segment ",
        "flushed ",
        "2026-11-21T09:48:46Z ",
        "partition ",
        "10.0.0.",
        "1844674407 ",
        "retry ",
        "in 37 ms\n",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut out = Vec::new();
    while out.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(WORDS[(state % 16) as usize].as_bytes());
        out.extend_from_slice(format!("{:x}", state >> 52).as_bytes());
    }
    out.truncate(VALUE_BYTES);
    out
}

/// Runs a second.
fn rate(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut runs = 0u32;
    while start.elapsed() < RUN {
        run();
        runs += 1;
    }
    f64::from(runs) / start.elapsed().as_secs_f64()
}
