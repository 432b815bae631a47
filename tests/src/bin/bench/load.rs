//! The loads on one node over gRPC: one producer, many producers, and a stream of batches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chronicle_proto::v1;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use chronicle_tests::api;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::disk::noise;

/// Bytes of the value of each record.
pub(crate) const RECORD_BYTES: usize = 1 << 10;
/// Records of one request of the stream: 512 KiB, so that two fill one group of the sequencer.
const STREAM_RECORDS: usize = 512;
/// Requests of the stream in flight.
const STREAM_WINDOW: usize = 16;
const PRODUCERS: usize = 64;

/// The target of the records: partition 0 of a topic, on its leader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) topic: &'a str,
}

/// One append after the other; returns the seconds of each.
pub(crate) async fn unbatched(place: Place<'_>, count: usize) -> Result<Vec<f64>> {
    let mut client = api::log(place.address).await?;
    let value = Bytes::from(noise(RECORD_BYTES));
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        api::append(&mut client, place.topic, value.clone()).await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// How a producer that waits for each answer sends its records.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// A `Produce` call per record.
    Calls,
    /// One `ProduceStream`.
    Stream,
}

/// One record at a time on a `ProduceStream`.
struct OneByOne {
    requests: mpsc::Sender<v1::ProduceRequest>,
    answers: tonic::Streaming<v1::ProduceStreamResponse>,
    request: v1::ProduceRequest,
}

impl OneByOne {
    async fn open(place: Place<'_>) -> Result<Self> {
        let record = v1::Record { value: Some(Bytes::from(noise(RECORD_BYTES))), ..Default::default() };
        let request =
            v1::ProduceRequest { partition: api::partition(place.topic), records: vec![record], ..Default::default() };
        let (requests, stream) = mpsc::channel(1);
        let answers = api::log(place.address).await?.produce_stream(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, answers, request })
    }

    async fn append(&mut self) -> Result<()> {
        self.requests.send(self.request.clone()).await?;
        let answer = self.answers.message().await?.context("the stream ended")?;
        match answer.result.context("an answer without a result")? {
            Answer::Ok(_) => Ok(()),
            Answer::Error(error) => bail!("{}: {}", error.reason, error.message),
        }
    }
}

/// As [`unbatched`], on one stream.
pub(crate) async fn unbatched_stream(place: Place<'_>, count: usize) -> Result<Vec<f64>> {
    let mut producer = OneByOne::open(place).await?;
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        producer.append().await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Appends with 64 producers, each with its own connection and one append at a time; returns records per second of all
/// together.
pub(crate) async fn producers(place: Place<'_>, span: Duration, way: Way) -> Result<f64> {
    let value = Bytes::from(noise(RECORD_BYTES));
    let count = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..PRODUCERS {
        let (count, stop) = (count.clone(), stop.clone());
        match way {
            Way::Calls => {
                let (mut client, value, topic) =
                    (api::log(place.address).await?, value.clone(), place.topic.to_owned());
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        api::append(&mut client, &topic, value.clone()).await?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                });
            }
            Way::Stream => {
                let mut producer = OneByOne::open(place).await?;
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        producer.append().await?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                });
            }
        }
    }
    let (start, before) = (Instant::now(), count.load(Ordering::Relaxed));
    tokio::time::sleep(span).await;
    let rate = (count.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(rate)
}

/// One stream with a bounded number of requests in flight; returns acknowledged value bytes and the seconds they took.
pub(crate) async fn streaming(place: Place<'_>, span: Duration) -> Result<(f64, f64)> {
    let value = Bytes::from(noise(RECORD_BYTES));
    let record = v1::Record { value: Some(value), ..Default::default() };
    let request = v1::ProduceRequest {
        partition: api::partition(place.topic),
        records: vec![record; STREAM_RECORDS],
        ..Default::default()
    };
    let (requests, stream) = mpsc::channel(STREAM_WINDOW);
    let start = Instant::now();
    for _ in 0..STREAM_WINDOW {
        requests.send(request.clone()).await?;
    }
    let mut client = api::log(place.address).await?;
    let mut answers = client.produce_stream(ReceiverStream::new(stream)).await?.into_inner();
    let mut records = 0;
    let mut requests = Some(requests);
    while let Some(answer) = answers.message().await? {
        match answer.result.context("an answer without a result")? {
            Answer::Ok(ok) => records += usize::try_from(ok.record_count)?,
            Answer::Error(error) => bail!("{}: {}", error.reason, error.message),
        }
        if start.elapsed() >= span {
            // Ends the stream once what is in flight is answered.
            requests = None;
        }
        if let Some(requests) = &requests {
            requests.send(request.clone()).await?;
        }
    }
    Ok(((records * RECORD_BYTES) as f64, start.elapsed().as_secs_f64()))
}
