//! A fake node: one partition, idempotent producers, and faults that a test injects. A test can also cut its connections.
//!
//! The table of producers is the node's own, so that a client cannot rely on a rule that only the fake has.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chronicle_client::v1::log_server::{Log, LogServer};
use chronicle_client::v1::produce_stream_response::Result as Answer;
use chronicle_client::{BoxedIo, Client, ClientConfig, Connector, RetryConfig, v1};
use chronicle_records::{BatchBuilder, BatchHeader, Compression, FirstSequence, ProducerTable, SequenceCheck};
use futures::Stream;
use parking_lot::Mutex;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// What happens to the next append (unary, or request of a stream).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Refused with this code and reason; not stored.
    Refuse(Code, &'static str),
    /// Stored; then the connection ends without an answer.
    StoreThenCut,
    /// Not stored; the connection ends without an answer.
    Cut,
    /// Stored; then answered with `OUTCOME_UNKNOWN`.
    StoreThenUnknown,
    /// Not stored, never answered.
    Hang,
    /// Stored or refused, and the stream ends instead of the answer. With a code: with a status without details.
    LoseAnswer(Option<Code>),
    /// The node has evicted all producers before the append.
    Evict,
}

#[derive(Debug, Default)]
pub struct State {
    pub records: Vec<v1::Record>,
    producers: ProducerTable,
    /// A producer that is not in the table may begin with any sequence, as in nodes that were built before that was
    /// refused.
    pub old_rule: bool,
    pub next_producer: i64,
    /// Epoch of new producers.
    pub producer_epoch: i32,
    pub faults: VecDeque<Fault>,
    /// What happens to the next InitProducer calls: `Refuse`, `Hang`, or nothing.
    pub init_faults: VecDeque<Fault>,
    /// Every append received: first sequence (if idempotent) and record count.
    pub requests: Vec<(Option<i32>, usize)>,
    /// Epoch and first sequence of every idempotent append received.
    pub sequences: Vec<(i32, i32)>,
    /// Appends are not answered while this is set.
    pub held: bool,
    /// Reads: end the stream after this many answers, once.
    pub end_reads_after: VecDeque<usize>,
    /// How many ListOffsets calls to refuse first.
    pub unavailable_reads: usize,
    pub offsets_calls: usize,
    pub connections: usize,
    /// Size of the largest value that is accepted.
    pub value_bytes_max: usize,
}

/// The node. Clones share their state.
#[derive(Clone)]
pub struct Node {
    pub state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    accept: mpsc::UnboundedSender<DuplexStream>,
    links: Arc<Mutex<Vec<JoinHandle<()>>>>,
    refuse_connections: Arc<Mutex<bool>>,
}

/// A status in the form that a node returns.
pub fn status(code: Code, reason: &str) -> Status {
    status_with(code, reason, 0)
}

fn status_with(code: Code, reason: &str, expected: i32) -> Status {
    let metadata = HashMap::from([("expected".to_owned(), expected.to_string())]);
    let details = ErrorDetails::with_error_info(reason, "chronicle.dev", metadata);
    Status::with_error_details(code, format!("{reason} on purpose"), details)
}

impl Node {
    pub fn start() -> Self {
        let (accept, incoming) = mpsc::unbounded_channel();
        let state = State::new();
        let node = Self {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::new(Notify::new()),
            accept,
            links: Arc::default(),
            refuse_connections: Arc::default(),
        };
        let server = LogServer::new(node.clone()).max_decoding_message_size(64 << 20);
        let incoming = UnboundedReceiverStream::new(incoming).map(Ok::<_, std::io::Error>);
        tokio::spawn(tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming));
        node
    }

    /// A client with short pauses.
    pub fn client(&self) -> Client {
        Client::connect(self.config()).unwrap()
    }

    pub fn config(&self) -> ClientConfig {
        let retry =
            RetryConfig { pause_min: Duration::from_millis(1), pause_max: Duration::from_millis(10), seed: Some(1) };
        ClientConfig::new("node:7400").retry(retry).connector(self.connector())
    }

    fn connector(&self) -> Connector {
        let node = self.clone();
        Arc::new(move |address| {
            assert_eq!(address, "node:7400");
            let node = node.clone();
            Box::pin(async move {
                if *node.refuse_connections.lock() {
                    return Err(std::io::ErrorKind::ConnectionRefused.into());
                }
                node.state.lock().connections += 1;
                node.changed.notify_waiters();
                let (client, mut near) = duplex(1 << 20);
                let (mut far, server) = duplex(1 << 20);
                let link = tokio::spawn(async move {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
                node.links.lock().push(link);
                let _ = node.accept.send(server);
                Ok(Box::new(client) as BoxedIo)
            })
        })
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.links.lock().drain(..).for_each(|link| link.abort());
    }

    pub fn refuse_connections(&self, refuse: bool) {
        *self.refuse_connections.lock() = refuse;
    }

    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().faults.extend(faults);
    }

    /// Delays appends, or lets them continue.
    pub fn hold(&self, held: bool) {
        self.state.lock().held = held;
        self.changed.notify_waiters();
    }

    /// Appends directly, without a client.
    pub fn store(&self, values: impl IntoIterator<Item = String>) {
        let records = values.into_iter().map(|value| v1::Record { value: Some(value.into()), ..Default::default() });
        self.state.lock().records.extend(records);
        self.changed.notify_waiters();
    }

    /// Values in the log, in order.
    pub fn values(&self) -> Vec<String> {
        let text = |record: &v1::Record| String::from_utf8(record.value.clone().unwrap_or_default().to_vec()).unwrap();
        self.state.lock().records.iter().map(text).collect()
    }

    /// Waits until the condition holds.
    pub async fn wait(&self, mut condition: impl FnMut(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition(&self.state.lock()) {
                return;
            }
            changed.await;
        }
    }

    async fn released(&self) {
        self.wait(|state| !state.held).await;
    }

    fn append(&self, request: v1::ProduceRequest) -> Outcome {
        let mut state = self.state.lock();
        let sequence = request.producer.map(|producer| producer.sequence);
        state.requests.push((sequence, request.records.len()));
        state.sequences.extend(request.producer.map(|producer| (producer.epoch, producer.sequence)));
        let fault = state.faults.pop_front().unwrap_or(Fault::None);
        let outcome = match fault {
            Fault::Refuse(code, reason) => Outcome::Answer(Err(status(code, reason))),
            Fault::Cut => Outcome::Cut,
            Fault::Hang => Outcome::Hang,
            Fault::None => Outcome::Answer(state.append(request)),
            Fault::StoreThenCut => state.append(request).map_or_else(|e| Outcome::Answer(Err(e)), |_| Outcome::Cut),
            Fault::LoseAnswer(code) => {
                let _ = state.append(request);
                Outcome::End(code)
            }
            Fault::Evict => {
                state.evict_producers();
                Outcome::Answer(state.append(request))
            }
            Fault::StoreThenUnknown => {
                let unknown = status(Code::Unknown, "OUTCOME_UNKNOWN");
                Outcome::Answer(state.append(request).and(Err(unknown)))
            }
        };
        drop(state);
        self.changed.notify_waiters();
        outcome
    }
}

enum Outcome {
    Answer(Result<v1::ProduceResponse, Status>),
    Cut,
    Hang,
    End(Option<Code>),
}

/// The header of the batch that a node stores for a request.
fn header(request: &v1::ProduceRequest) -> BatchHeader {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some(identity) = request.producer {
        let epoch = i16::try_from(identity.epoch).unwrap();
        builder = builder.with_producer(identity.producer_id, epoch, identity.sequence);
    }
    for record in &request.records {
        builder.push(0, record.key.as_deref(), record.value.as_deref(), std::iter::empty()).unwrap();
    }
    chronicle_records::parse_header(&builder.build().unwrap()).unwrap()
}

impl State {
    /// An empty log that accepts values of any size.
    pub fn new() -> Self {
        Self { value_bytes_max: usize::MAX, ..Self::default() }
    }

    /// Removes the producers that the node knows.
    pub fn evict_producers(&mut self) {
        self.producers = ProducerTable::default();
    }

    /// Stores an append or refuses it.
    pub fn append(&mut self, request: v1::ProduceRequest) -> Result<v1::ProduceResponse, Status> {
        let count = i32::try_from(request.records.len()).unwrap();
        let base_offset = i64::try_from(self.records.len()).unwrap();
        let too_large =
            |record: &v1::Record| record.value.as_ref().is_some_and(|value| value.len() > self.value_bytes_max);
        if request.records.iter().any(too_large) {
            return Err(status(Code::InvalidArgument, "RECORD_TOO_LARGE"));
        }
        let header = header(&request);
        let first = if self.old_rule { FirstSequence::Any } else { FirstSequence::Zero };
        match self.producers.check(&header, first, 0) {
            SequenceCheck::Next => {}
            SequenceCheck::Duplicate { base_offset } => {
                return Ok(v1::ProduceResponse { base_offset, record_count: count, duplicate: true });
            }
            SequenceCheck::Stored | SequenceCheck::Full => unreachable!("the table of a fake node has no limits"),
            SequenceCheck::Fenced { .. } => return Err(status(Code::FailedPrecondition, "PRODUCER_FENCED")),
            SequenceCheck::OutOfOrder { expected } => {
                return Err(status_with(Code::FailedPrecondition, "OUT_OF_ORDER_SEQUENCE", expected));
            }
        }
        if let Some(v1::Expectation { expect: Some(v1::expectation::Expect::NextOffset(next)) }) = request.expectation
            && next != base_offset
        {
            return Err(status(Code::FailedPrecondition, "VERSION_CONFLICT"));
        }
        self.producers.appended(&header, base_offset, 0);
        self.records.extend(request.records);
        Ok(v1::ProduceResponse { base_offset, record_count: count, duplicate: false })
    }
}

pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Log for Node {
    async fn produce(&self, request: Request<v1::ProduceRequest>) -> Result<Response<v1::ProduceResponse>, Status> {
        self.released().await;
        match self.append(request.into_inner()) {
            Outcome::Answer(answer) => answer.map(Response::new),
            Outcome::Hang => std::future::pending().await,
            Outcome::End(code) => Err(Status::new(code.unwrap_or(Code::Unknown), "no details")),
            Outcome::Cut => {
                self.cut();
                std::future::pending().await
            }
        }
    }

    type ProduceStreamStream = Answers<v1::ProduceStreamResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let (node, mut requests) = (self.clone(), request.into_inner());
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                node.released().await;
                let result = match node.append(request) {
                    Outcome::Answer(Ok(ok)) => Answer::Ok(ok),
                    Outcome::Answer(Err(status)) => {
                        let info = status.get_details_error_info().unwrap();
                        Answer::Error(v1::StreamError {
                            code: status.code() as i32,
                            message: status.message().to_owned(),
                            reason: info.reason,
                            metadata: info.metadata,
                        })
                    }
                    Outcome::End(None) => return,
                    Outcome::End(Some(code)) => {
                        let _ = sender.send(Err(Status::new(code, "no details"))).await;
                        return;
                    }
                    Outcome::Hang => std::future::pending().await,
                    Outcome::Cut => return node.cut(),
                };
                if sender.send(Ok(v1::ProduceStreamResponse { result: Some(result) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn consume(&self, _: Request<v1::ConsumeRequest>) -> Result<Response<v1::ConsumeResponse>, Status> {
        Err(status(Code::OutOfRange, "OFFSET_OUT_OF_RANGE"))
    }

    type ConsumeStreamStream = Answers<v1::ConsumeResponse>;

    /// Responses have at most two records.
    async fn consume_stream(
        &self,
        request: Request<v1::ConsumeStreamRequest>,
    ) -> Result<Response<Self::ConsumeStreamStream>, Status> {
        let request = request.into_inner();
        let mut next = match request.from.and_then(|from| from.at) {
            Some(v1::position::At::Offset(offset)) => usize::try_from(offset).unwrap(),
            Some(v1::position::At::Latest(_)) => self.state.lock().records.len(),
            _ => 0,
        };
        let until = request.until_offset.map_or(usize::MAX, |until| usize::try_from(until).unwrap());
        let (node, (sender, receiver)) = (self.clone(), mpsc::channel(1));
        let mut answers_left = self.state.lock().end_reads_after.pop_front();
        tokio::spawn(async move {
            while next < until {
                if answers_left == Some(0) {
                    return node.cut();
                }
                answers_left = answers_left.map(|left| left - 1);
                node.wait(|state| state.records.len() > next).await;
                let answer = {
                    let state = node.state.lock();
                    let end = state.records.len().min(next + 2).min(until);
                    let stored = |offset: usize| v1::StoredRecord {
                        offset: offset as i64,
                        value: state.records[offset].value.clone(),
                        ..Default::default()
                    };
                    let records = (next..end).map(stored).collect();
                    next = end;
                    v1::ConsumeResponse { records, next_offset: end as i64, ..Default::default() }
                };
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let fault = self.state.lock().init_faults.pop_front();
        match fault {
            Some(Fault::Refuse(code, reason)) => return Err(status(code, reason)),
            Some(Fault::Hang) => return std::future::pending().await,
            _ => {}
        }
        let mut state = self.state.lock();
        state.next_producer += 1;
        Ok(Response::new(v1::InitProducerResponse { producer_id: state.next_producer, epoch: state.producer_epoch }))
    }

    async fn list_offsets(
        &self,
        _: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        let mut state = self.state.lock();
        state.offsets_calls += 1;
        self.changed.notify_waiters();
        if state.unavailable_reads > 0 {
            state.unavailable_reads -= 1;
            return Err(status(Code::Unavailable, "UNAVAILABLE"));
        }
        let next = i64::try_from(state.records.len()).unwrap();
        Ok(Response::new(v1::ListOffsetsResponse { earliest: 0, next, at_timestamp: None }))
    }
}
