//! A fake cluster: several nodes with one replicated log of one partition. Leaders change, die, fall silent or become
//! unreachable, followers are behind, metadata is out of date. All waiting uses tokio's clock, so tests may pause it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use chronicle_client::v1::cluster_server::{Cluster as ClusterService, ClusterServer};
use chronicle_client::v1::log_server::{Log, LogServer};
use chronicle_client::v1::produce_stream_response::Result as Answer;
use chronicle_client::{BoxedIo, Client, ClientConfig, Connector, RetryConfig, v1};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use super::single_node::{Answers, Fault, State};

/// What happens when the client connects to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It reaches this node.
    Node(usize),
    /// It reaches the live nodes in turn, like a service.
    Service,
    /// It is refused.
    Refused,
    /// It never completes.
    Swallowed,
}

/// One node.
#[derive(Debug)]
pub struct NodeState {
    pub address: String,
    pub up: bool,
    /// The other nodes consider it alive.
    pub alive: bool,
    /// Claims that this node leads, in this term, whether it is true or not.
    pub believes: Option<(usize, u64)>,
    /// Has no more than this many records.
    pub behind: usize,
    /// Does not know the topic for this many metadata requests.
    pub unaware: usize,
    /// Append requests, opened reads, metadata requests and connections received.
    pub appends: usize,
    pub reads: usize,
    pub asked: usize,
    pub connections: usize,
}

/// The state of all nodes.
pub struct ClusterState {
    pub log: State,
    pub nodes: Vec<NodeState>,
    pub leader: Option<usize>,
    pub term: u64,
    /// A dead leader is replaced after this many requests to the other nodes.
    pub election_asks: usize,
    asks_left: usize,
    reach: HashMap<String, Reach>,
    turn: usize,
    /// Operations in the order received, with the node that received each.
    pub operations: Vec<(usize, String)>,
    /// How many operations to answer with a broken connection first.
    pub broken_operations: usize,
}

/// The cluster. Clones share their state.
#[derive(Clone)]
pub struct Cluster {
    pub state: Arc<Mutex<ClusterState>>,
    changed: Arc<Notify>,
    parts: Arc<Vec<Parts>>,
}

/// The connections of a node.
struct Parts {
    accept: mpsc::UnboundedSender<DuplexStream>,
    links: Mutex<Vec<JoinHandle<()>>>,
    /// Bytes flow while this is true.
    flows: watch::Sender<bool>,
}

/// One node's services.
#[derive(Clone)]
struct Service {
    cluster: Cluster,
    me: usize,
}

impl Cluster {
    /// Nodes at `n0:7400`, `n1:7400` and so on. Node 0 leads.
    pub fn start(size: usize) -> Self {
        let node = |n: usize| NodeState {
            address: format!("n{n}:7400"),
            up: true,
            alive: true,
            believes: None,
            behind: usize::MAX,
            unaware: 0,
            appends: 0,
            reads: 0,
            asked: 0,
            connections: 0,
        };
        let (parts, incoming): (Vec<_>, Vec<_>) = (0..size)
            .map(|_| {
                let (accept, incoming) = mpsc::unbounded_channel();
                (Parts { accept, links: Mutex::default(), flows: watch::Sender::new(true) }, incoming)
            })
            .unzip();
        let nodes: Vec<NodeState> = (0..size).map(node).collect();
        let state = ClusterState {
            log: State::new(),
            reach: nodes.iter().enumerate().map(|(n, node)| (node.address.clone(), Reach::Node(n))).collect(),
            nodes,
            leader: Some(0),
            term: 1,
            election_asks: 3,
            asks_left: 0,
            turn: 0,
            operations: Vec::new(),
            broken_operations: 0,
        };
        let cluster =
            Self { state: Arc::new(Mutex::new(state)), changed: Arc::new(Notify::new()), parts: Arc::new(parts) };
        for (me, incoming) in incoming.into_iter().enumerate() {
            let service = Service { cluster: cluster.clone(), me };
            let incoming = UnboundedReceiverStream::new(incoming).map(Ok::<_, io::Error>);
            let server = tonic::transport::Server::builder()
                .add_service(LogServer::new(service.clone()).max_decoding_message_size(64 << 20))
                .add_service(ClusterServer::new(service));
            tokio::spawn(server.serve_with_incoming(incoming));
        }
        cluster
    }

    /// A client with these addresses.
    pub fn client(&self, servers: &str) -> Client {
        Client::connect(self.config(servers)).unwrap()
    }

    pub fn config(&self, servers: &str) -> ClientConfig {
        let retry =
            RetryConfig { pause_min: Duration::from_millis(5), pause_max: Duration::from_millis(100), seed: Some(1) };
        ClientConfig::new(servers).retry(retry).connector(self.connector())
    }

    fn connector(&self) -> Connector {
        let cluster = self.clone();
        Arc::new(move |address| {
            let cluster = cluster.clone();
            Box::pin(async move {
                let Some(n) = cluster.reached(&address) else { return std::future::pending().await };
                let n = n?;
                let (client, near) = duplex(1 << 20);
                let (far, server) = duplex(1 << 20);
                let parts = &cluster.parts[n];
                parts.links.lock().push(tokio::spawn(link(near, far, parts.flows.subscribe())));
                let _ = parts.accept.send(server);
                Ok(Box::new(client) as BoxedIo)
            })
        })
    }

    /// The node at an address; `None`: connecting never completes.
    fn reached(&self, address: &str) -> Option<io::Result<usize>> {
        let mut state = self.state.lock();
        let refused = Some(Err(io::ErrorKind::ConnectionRefused.into()));
        let n = match state.reach.get(address) {
            Some(Reach::Node(n)) => *n,
            Some(Reach::Service) => {
                let up: Vec<usize> = (0..state.nodes.len()).filter(|n| state.nodes[*n].up).collect();
                state.turn += 1;
                match up.get(state.turn % up.len().max(1)) {
                    Some(n) => *n,
                    None => return refused,
                }
            }
            Some(Reach::Swallowed) => return None,
            Some(Reach::Refused) | None => return refused,
        };
        if !state.nodes[n].up {
            return refused;
        }
        state.nodes[n].connections += 1;
        Some(Ok(n))
    }

    /// Changes how an address is reached, from the next connection on.
    pub fn reach(&self, address: &str, reach: Reach) {
        self.state.lock().reach.insert(address.to_owned(), reach);
    }

    /// Closes a node's connections and refuses new ones. A leader is replaced after some requests to the other nodes.
    pub fn kill(&self, n: usize) {
        let mut state = self.state.lock();
        state.nodes[n].up = false;
        if state.leader == Some(n) {
            state.leader = None;
            state.asks_left = state.election_asks;
        }
        drop(state);
        self.parts[n].links.lock().drain(..).for_each(|link| link.abort());
        self.changed.notify_waiters();
    }

    /// Makes a killed node reachable again.
    pub fn revive(&self, n: usize) {
        self.state.lock().nodes[n].up = true;
        self.changed.notify_waiters();
    }

    /// Blocks all bytes to and from a node, or lets them flow again. The node still accepts connections.
    pub fn silence(&self, n: usize, silent: bool) {
        self.parts[n].flows.send_replace(!silent);
    }

    /// Leaves the cluster without a leader until [`Self::lead`].
    pub fn depose(&self) {
        let mut state = self.state.lock();
        (state.leader, state.asks_left) = (None, usize::MAX);
    }

    /// Makes a node the leader.
    pub fn lead(&self, n: usize) {
        let mut state = self.state.lock();
        state.leader = Some(n);
        state.term += 1;
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn values(&self) -> Vec<String> {
        let text = |record: &v1::Record| String::from_utf8(record.value.clone().unwrap_or_default().to_vec()).unwrap();
        self.state.lock().log.records.iter().map(text).collect()
    }

    /// Appends directly, without a client.
    pub fn store(&self, values: impl IntoIterator<Item = String>) {
        let records = values.into_iter().map(|value| v1::Record { value: Some(value.into()), ..Default::default() });
        self.state.lock().log.records.extend(records);
        self.changed.notify_waiters();
    }

    /// One counter of every node.
    pub fn counts(&self, of: impl Fn(&NodeState) -> usize) -> Vec<usize> {
        self.state.lock().nodes.iter().map(of).collect()
    }

    /// Waits until the condition holds.
    pub async fn wait(&self, mut condition: impl FnMut(&ClusterState) -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition(&self.state.lock()) {
                return;
            }
            changed.await;
        }
    }
}

/// Carries bytes both ways while they may flow.
async fn link(near: DuplexStream, far: DuplexStream, flows: watch::Receiver<bool>) {
    async fn carry(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        mut flows: watch::Receiver<bool>,
    ) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if flows.wait_for(|flows| *flows).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
    let ((near_in, near_out), (far_in, far_out)) = (split(near), split(far));
    // The connection ends when one direction ends.
    tokio::select! {
        () = carry(near_in, far_out, flows.clone()) => {}
        () = carry(far_in, near_out, flows) => {}
    }
}

fn status(code: Code, reason: &str, metadata: impl IntoIterator<Item = (&'static str, String)>) -> Status {
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let details = ErrorDetails::with_error_info(reason, "chronicle.dev", metadata);
    Status::with_error_details(code, format!("{reason} on purpose"), details)
}

enum Outcome {
    Answer(Result<v1::ProduceResponse, Status>),
    Silence,
    /// No answer until the node leads in another term than this.
    Hang(u64),
}

impl Service {
    /// Counts a request towards the next election.
    fn count_request(&self, state: &mut ClusterState) {
        if state.leader.is_none() {
            match state.asks_left.checked_sub(1) {
                Some(left) => state.asks_left = left,
                None => {
                    state.leader = (0..state.nodes.len()).find(|n| state.nodes[*n].up);
                    state.term += 1;
                }
            }
        }
        self.cluster.changed.notify_waiters();
    }

    /// The leader and its term, according to this node.
    fn belief(&self, state: &ClusterState) -> (Option<usize>, u64) {
        match state.nodes[self.me].believes {
            Some((leader, term)) => (Some(leader), term),
            None => (state.leader, state.term),
        }
    }

    fn not_leader(&self, state: &ClusterState) -> Status {
        let leader = self.belief(state).0.filter(|leader| *leader != self.me);
        let leader = leader.map(|leader| ("leader", state.nodes[leader].address.clone()));
        status(Code::Unavailable, "NOT_LEADER", leader)
    }

    /// An append and its answer, if there is one.
    async fn appended(&self, request: v1::ProduceRequest) -> Result<v1::ProduceResponse, Status> {
        match self.append(request) {
            Outcome::Answer(answer) => answer,
            Outcome::Silence => std::future::pending().await,
            Outcome::Hang(term) => {
                self.cluster.wait(|state| state.leader == Some(self.me) && state.term != term).await;
                Err(status(Code::Unknown, "OUTCOME_UNKNOWN", None))
            }
        }
    }

    fn append(&self, request: v1::ProduceRequest) -> Outcome {
        let mut state = self.cluster.state.lock();
        state.nodes[self.me].appends += 1;
        if state.leader != Some(self.me) {
            self.count_request(&mut state);
            return Outcome::Answer(Err(self.not_leader(&state)));
        }
        self.cluster.changed.notify_waiters();
        let sequence = request.producer.map(|producer| producer.sequence);
        state.log.requests.push((sequence, request.records.len()));
        let fault = state.log.faults.pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::None => Outcome::Answer(state.log.append(request)),
            Fault::Refuse(code, reason) => Outcome::Answer(Err(status(code, reason, None))),
            Fault::Hang => Outcome::Hang(state.term),
            Fault::StoreThenUnknown => {
                let stored = state.log.append(request);
                Outcome::Answer(stored.and(Err(status(Code::Unknown, "OUTCOME_UNKNOWN", None))))
            }
            Fault::Evict => {
                state.log.evict_producers();
                Outcome::Answer(state.log.append(request))
            }
            Fault::Cut | Fault::StoreThenCut | Fault::LoseAnswer(_) => {
                if fault != Fault::Cut
                    && let Err(refused) = state.log.append(request)
                {
                    return Outcome::Answer(Err(refused));
                }
                // The leader dies; nodes that died before are back.
                state.nodes.iter_mut().for_each(|node| node.up = true);
                drop(state);
                self.cluster.kill(self.me);
                Outcome::Silence
            }
        }
    }

    /// The records of this node from an offset on: at most two.
    fn read(&self, next: usize, until: usize) -> v1::ConsumeResponse {
        let state = self.cluster.state.lock();
        let end = self.end(&state);
        let to = end.min(next + 2).min(until);
        let stored = |offset: usize| v1::StoredRecord {
            offset: offset as i64,
            value: state.log.records[offset].value.clone(),
            ..Default::default()
        };
        let records = (next..to).map(stored).collect();
        v1::ConsumeResponse {
            records,
            next_offset: to.max(next) as i64,
            high_watermark: end as i64,
            ..Default::default()
        }
    }

    fn end(&self, state: &ClusterState) -> usize {
        let behind = if state.leader == Some(self.me) { usize::MAX } else { state.nodes[self.me].behind };
        state.log.records.len().min(behind)
    }

    fn out_of_range(&self, state: &ClusterState) -> Status {
        let next = self.end(state).to_string();
        status(Code::OutOfRange, "OFFSET_OUT_OF_RANGE", [("earliest", "0".to_owned()), ("next", next)])
    }

    fn operation(&self, what: &str) -> Result<Response<v1::OperationResponse>, Status> {
        let mut state = self.cluster.state.lock();
        if state.broken_operations > 0 {
            state.broken_operations -= 1;
            return Err(Status::unavailable("the connection broke"));
        }
        state.operations.push((self.me, what.to_owned()));
        let operation = v1::Operation { id: 7, kind: what.to_owned(), ..Default::default() };
        Ok(Response::new(v1::OperationResponse { operation: Some(operation) }))
    }
}

fn start(from: Option<v1::Position>, end: usize) -> usize {
    match from.and_then(|from| from.at) {
        Some(v1::position::At::Offset(offset)) => usize::try_from(offset).unwrap(),
        Some(v1::position::At::Latest(_)) => end,
        _ => 0,
    }
}

#[tonic::async_trait]
impl Log for Service {
    async fn produce(&self, request: Request<v1::ProduceRequest>) -> Result<Response<v1::ProduceResponse>, Status> {
        self.appended(request.into_inner()).await.map(Response::new)
    }

    type ProduceStreamStream = Answers<v1::ProduceStreamResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let (service, mut requests) = (self.clone(), request.into_inner());
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                let result = match service.appended(request).await {
                    Ok(ok) => Answer::Ok(ok),
                    Err(status) => {
                        let info = status.get_details_error_info().unwrap();
                        Answer::Error(v1::StreamError {
                            code: status.code() as i32,
                            message: status.message().to_owned(),
                            reason: info.reason,
                            metadata: info.metadata,
                        })
                    }
                };
                if sender.send(Ok(v1::ProduceStreamResponse { result: Some(result) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn consume(&self, request: Request<v1::ConsumeRequest>) -> Result<Response<v1::ConsumeResponse>, Status> {
        let request = request.into_inner();
        let next = {
            let mut state = self.cluster.state.lock();
            state.nodes[self.me].reads += 1;
            let next = start(request.from, self.end(&state));
            if next >= self.end(&state) {
                return Err(self.out_of_range(&state));
            }
            next
        };
        Ok(Response::new(self.read(next, usize::MAX)))
    }

    type ConsumeStreamStream = Answers<v1::ConsumeResponse>;

    async fn consume_stream(
        &self,
        request: Request<v1::ConsumeStreamRequest>,
    ) -> Result<Response<Self::ConsumeStreamStream>, Status> {
        let request = request.into_inner();
        let mut next = {
            let mut state = self.cluster.state.lock();
            state.nodes[self.me].reads += 1;
            self.cluster.changed.notify_waiters();
            let next = start(request.from, self.end(&state));
            if next > self.end(&state) {
                return Err(self.out_of_range(&state));
            }
            // One record early: a node may start at the beginning of a stored batch.
            next.saturating_sub(1)
        };
        let until = request.until_offset.map_or(usize::MAX, |until| usize::try_from(until).unwrap());
        let (service, (sender, receiver)) = (self.clone(), mpsc::channel(1));
        tokio::spawn(async move {
            while next < until {
                service.cluster.wait(|state| service.end(state) > next).await;
                let answer = service.read(next, until);
                next = usize::try_from(answer.next_offset).unwrap();
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
        let mut state = self.cluster.state.lock();
        state.log.next_producer += 1;
        Ok(Response::new(v1::InitProducerResponse { producer_id: state.log.next_producer, epoch: 0 }))
    }

    async fn list_offsets(
        &self,
        _: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        let mut state = self.cluster.state.lock();
        if state.leader != Some(self.me) {
            self.count_request(&mut state);
            return Err(self.not_leader(&state));
        }
        let next = i64::try_from(state.log.records.len()).unwrap();
        Ok(Response::new(v1::ListOffsetsResponse { earliest: 0, next, at_timestamp: None }))
    }
}

#[tonic::async_trait]
impl ClusterService for Service {
    async fn get_servers(&self, _: Request<v1::GetServersRequest>) -> Result<Response<v1::GetServersResponse>, Status> {
        let state = self.cluster.state.lock();
        Ok(Response::new(v1::GetServersResponse { servers: servers(&state), cluster_id: "c".into() }))
    }

    async fn get_metadata(
        &self,
        request: Request<v1::GetMetadataRequest>,
    ) -> Result<Response<v1::GetMetadataResponse>, Status> {
        let names = request.into_inner().topics;
        let mut state = self.cluster.state.lock();
        state.nodes[self.me].asked += 1;
        self.count_request(&mut state);
        let mut answer =
            v1::GetMetadataResponse { servers: servers(&state), cluster_id: "c".into(), ..Default::default() };
        let unaware = state.nodes[self.me].unaware;
        state.nodes[self.me].unaware = unaware.saturating_sub(1);
        for name in names {
            if name != "default" || unaware > 0 {
                answer.unknown.push(name);
                continue;
            }
            let (leader, term) = self.belief(&state);
            let partition = v1::PartitionMetadata {
                partition: 0,
                leader: leader.map(|leader| leader.to_string()).unwrap_or_default(),
                term,
                replicas: (0..state.nodes.len()).map(|n| n.to_string()).collect(),
            };
            answer.topics.push(v1::TopicMetadata { name, id: "t".into(), partitions: vec![partition] });
        }
        Ok(Response::new(answer))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse { cluster_id: "c".into(), ..Default::default() }))
    }

    async fn decommission(&self, request: Request<v1::NodeRequest>) -> Result<Response<v1::OperationResponse>, Status> {
        self.operation(&format!("decommission {}", request.into_inner().node))
    }

    async fn drain(&self, request: Request<v1::NodeRequest>) -> Result<Response<v1::OperationResponse>, Status> {
        self.operation(&format!("drain {}", request.into_inner().node))
    }

    async fn undrain(&self, request: Request<v1::NodeRequest>) -> Result<Response<v1::OperationResponse>, Status> {
        self.operation(&format!("undrain {}", request.into_inner().node))
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        self.operation(&format!("cancel {}", request.into_inner().id))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        self.operation("transfer")?;
        Ok(Response::new(v1::TransferLeadershipResponse { leader: request.into_inner().to }))
    }

    async fn recover(&self, _: Request<v1::RecoverRequest>) -> Result<Response<v1::RecoverResponse>, Status> {
        self.operation("recover")?;
        Ok(Response::new(v1::RecoverResponse::default()))
    }

    type VerifyStream = Answers<v1::VerifyResponse>;

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let topic = request.into_inner().topic;
        let answers = (0..3)
            .map(move |partition| Ok(v1::VerifyResponse { topic: topic.clone(), partition, ..Default::default() }));
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }
}

fn servers(state: &ClusterState) -> Vec<v1::Server> {
    let server = |(n, node): (usize, &NodeState)| v1::Server {
        node_id: n.to_string(),
        address: node.address.clone(),
        alive: node.up && node.alive,
        state: v1::ServerState::Active.into(),
        ..Default::default()
    };
    state.nodes.iter().enumerate().map(server).collect()
}
