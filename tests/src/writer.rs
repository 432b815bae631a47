//! A writer that continues through crashes of the node and records every answer.
//!
//! It pipelines requests over `ProduceStream`. With a producer identity it sends unanswered requests again after a
//! crash; each record must be stored exactly once. Without one it must not send them again: their outcome is unknown,
//! and it continues with the next requests.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use chronicle_proto::v1;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::api;
use crate::input::Item;
use crate::node::PATIENCE;

/// The answer to one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Durable at this offset.
    Acknowledged(i64),
    /// Not accepted.
    Refused,
    /// The connection ended before the answer: stored or not.
    Unknown,
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Send with a producer id and sequence numbers, and send unanswered requests again.
    pub idempotent: bool,
    /// Most records of one request.
    pub records_max: usize,
    /// Most bytes of keys and values in one request (one record may be larger).
    pub bytes_max: usize,
    /// Requests in flight.
    pub window: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { idempotent: true, records_max: 50, bytes_max: 256 << 10, window: 16 }
    }
}

/// Splits a list into requests: ranges of indexes, in order.
pub fn requests(items: &[Item], options: &Options) -> Vec<std::ops::Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, item) in items.iter().enumerate() {
        let size = item.key.len() + item.value.len();
        if index > start && (index - start >= options.records_max || bytes + size > options.bytes_max) {
            ranges.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    if start < items.len() {
        ranges.push(start..items.len());
    }
    ranges
}

/// Writes all items to partition 0 of a topic, in order, also through crashes of the node, and returns the outcome of
/// each. Adds the number of acknowledged records to `acknowledged` as they are acknowledged.
///
/// # Errors
/// The answer violates the protocol, is a permanent refusal, or the node is unreachable for too long.
pub async fn write_all(
    address: SocketAddr,
    topic: &str,
    items: &[Item],
    options: Options,
    acknowledged: &watch::Sender<usize>,
) -> Result<Vec<Outcome>> {
    let ranges = requests(items, &options);
    let mut outcomes = vec![Outcome::Unknown; items.len()];
    let producer = if options.idempotent { Some(init_producer(address).await?) } else { None };
    let mut todo: VecDeque<usize> = (0..ranges.len()).collect();
    let mut deadline = Instant::now() + PATIENCE;
    while !todo.is_empty() {
        ensure!(Instant::now() < deadline, "nothing was acknowledged for {PATIENCE:?}; {} requests left", todo.len());
        // Requests sent on this connection and not answered yet, oldest first.
        let mut sent: VecDeque<usize> = VecDeque::new();
        let Ok(mut client) = api::log(address).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (requests, stream) = mpsc::channel(options.window);
        let opened = {
            // The node may send its response headers only with the first answer, so the first request is sent before
            // waiting for them.
            if let Some(first) = todo.pop_front() {
                sent.push_back(first);
                let _ =
                    requests.send(request(topic, &items[ranges[first].clone()], producer, ranges[first].start)).await;
            }
            client.produce_stream(ReceiverStream::new(stream)).await
        };
        if let Ok(answers) = opened {
            let mut answers = answers.into_inner();
            loop {
                while sent.len() < options.window {
                    let Some(next) = todo.pop_front() else { break };
                    sent.push_back(next);
                    let message = request(topic, &items[ranges[next].clone()], producer, ranges[next].start);
                    if requests.send(message).await.is_err() {
                        break;
                    }
                }
                let Some(&expected) = sent.front() else { break };
                let answer = match answers.message().await {
                    Ok(Some(v1::ProduceStreamResponse { result: Some(answer) })) => answer,
                    Ok(Some(_)) => bail!("an answer without a result"),
                    // The connection or the stream ended: the requests left in `sent` have no answer.
                    Ok(None) | Err(_) => break,
                };
                let range = ranges[expected].clone();
                match answer {
                    Answer::Ok(ok) => {
                        let count = usize::try_from(ok.record_count)?;
                        ensure!(count == range.len(), "{count} records acknowledged of {}", range.len());
                        for (delta, index) in range.enumerate() {
                            outcomes[index] = Outcome::Acknowledged(ok.base_offset + i64::try_from(delta)?);
                        }
                        sent.pop_front();
                        acknowledged.send_modify(|total| *total += count);
                        deadline = Instant::now() + PATIENCE;
                    }
                    Answer::Error(error) if may_pass(&error.reason) => {
                        if options.idempotent {
                            // The requests behind it are refused as out of order: start over from here.
                            break;
                        }
                        let unknown = error.reason == "OUTCOME_UNKNOWN";
                        outcomes[range].fill(if unknown { Outcome::Unknown } else { Outcome::Refused });
                        sent.pop_front();
                    }
                    Answer::Error(error) => bail!("request {expected} refused: {}: {}", error.reason, error.message),
                }
            }
        }
        if todo.is_empty() && sent.is_empty() {
            break;
        }
        // The connection was lost or the node asked to retry later; it may be restarting.
        tokio::time::sleep(Duration::from_millis(10)).await;
        if options.idempotent {
            // Again, in the same order and with the same sequence numbers.
            while let Some(unanswered) = sent.pop_back() {
                todo.push_front(unanswered);
            }
        }
    }
    Ok(outcomes)
}

/// Refusals that a retry may not get, or that leave the outcome unknown.
fn may_pass(reason: &str) -> bool {
    ["OVERLOADED", "UNAVAILABLE", "NOT_LEADER", "OUTCOME_UNKNOWN", "DISK_FAILED", "DISK_FULL"].contains(&reason)
}

async fn init_producer(address: SocketAddr) -> Result<(i64, i32)> {
    let answer = api::log(address).await?.init_producer(v1::InitProducerRequest {}).await?.into_inner();
    Ok((answer.producer_id, answer.epoch))
}

fn request(topic: &str, items: &[Item], producer: Option<(i64, i32)>, sequence: usize) -> v1::ProduceRequest {
    let sequence = i32::try_from(sequence).expect("test lists are shorter than 2^31 records");
    v1::ProduceRequest {
        partition: api::partition(topic),
        records: items.iter().map(api::record).collect(),
        producer: producer.map(|(producer_id, epoch)| v1::ProducerIdentity { producer_id, epoch, sequence }),
        ..Default::default()
    }
}
