//! What a leader answers that was cut off, while others have elected another one: never from the past.
//!
//! Three nodes in this process. The network between them is real and can be cut: bytes vanish, as behind a broken switch.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use chronicle_client::{BoxedIo, Connector, tcp_connector};
use chronicle_node::broker::{Broker, Route};
use chronicle_node::config::Config;
use chronicle_node::groups::{Commit, CommittedOffset, Groups, Heartbeat, Partitions};
use chronicle_node::host::Host;
use chronicle_node::host::net::Acceptor;
use chronicle_node::model::{
    ApiError, Expectation, Fetch, NewTopic, Position, Produce, ProducerIdentity, Reason, SettingsChange,
};
use chronicle_node::runtime;
use chronicle_node::telemetry::Metrics;
use futures::FutureExt;
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{append, keyed, record, target};

const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// Cuts one node off from the others, for good.
#[derive(Clone, Default)]
struct Network(Arc<parking_lot::Mutex<HashSet<String>>>, Arc<AtomicBool>);

impl Network {
    fn cut(&self, node: &Node) {
        self.0.lock().insert(node.address.to_string());
        self.1.store(true, Ordering::SeqCst);
    }

    /// Connections from the node at `from`.
    fn connector(&self, from: SocketAddr) -> Connector {
        let (network, tcp) = (self.clone(), tcp_connector());
        Arc::new(move |to| {
            let (network, connecting) = (network.clone(), tcp(to.clone()));
            async move {
                let ends = [from.to_string(), to];
                if ends.iter().any(|end| network.0.lock().contains(end)) {
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::io::Error>(Box::new(Line { network, ends, io: connecting.await? }) as BoxedIo)
            }
            .boxed()
        })
    }
}

/// One connection. What is sent over a cut line is lost, and nothing arrives.
struct Line {
    network: Network,
    ends: [String; 2],
    io: BoxedIo,
}

impl Line {
    fn is_cut(&self) -> bool {
        self.network.1.load(Ordering::SeqCst) && self.ends.iter().any(|end| self.network.0.lock().contains(end))
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.is_cut() {
            return Poll::Pending;
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, into);
        if self.is_cut() {
            into.set_filled(before);
            return Poll::Pending;
        }
        read
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.is_cut() {
            true => Poll::Ready(Ok(bytes.len())),
            false => Pin::new(&mut self.io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

struct Node {
    address: SocketAddr,
    broker: Broker,
    groups: Groups,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ApiError>>,
    _directory: TempDir,
}

/// Three nodes that are one cluster.
async fn cluster(network: &Network) -> Vec<Node> {
    let mut acceptors = Vec::new();
    for _ in 0..3 {
        acceptors.push(Acceptor::bind("127.0.0.1:0".parse().unwrap()).await.unwrap());
    }
    let addresses: Vec<SocketAddr> = acceptors.iter().map(|acceptor| acceptor.local_addr().unwrap()).collect();
    let starting = acceptors.into_iter().enumerate().map(|(number, acceptor)| {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.name = format!("n{number}");
        config.node.data_dir = directory.path().join("data");
        config.node.default_topic = String::new();
        config.listeners.data = addresses[number];
        config.cluster.bootstrap_expect = 3;
        config.cluster.seeds = addresses.iter().map(ToString::to_string).collect();
        // A leader that is cut off finds out late that nobody answers: the time of this test.
        config.cluster.election_timeout_ms = 6000;
        let host = Host { connector: network.connector(addresses[number]), ..Host::system() };
        start(addresses[number], host, acceptor, config, directory)
    });
    futures::future::join_all(starting).await
}

async fn start(address: SocketAddr, host: Host, acceptor: Acceptor, config: Config, directory: TempDir) -> Node {
    let stop = CancellationToken::new();
    let (opened, broker) = oneshot::channel();
    let (ready, is_ready) = oneshot::channel();
    let stopping = stop.clone();
    let running = tokio::spawn(async move {
        let opened = |node: &runtime::Node| drop(opened.send(node.broker().clone()));
        let ready = || _ = ready.send(());
        runtime::run_on(host, acceptor, config, Metrics::new(), stopping, opened, ready).await
    });
    let broker = broker.await.unwrap();
    tokio::time::timeout(PATIENCE, is_ready).await.expect("the node joins").unwrap();
    Node { address, groups: Groups::start(broker.clone()), broker, stop, running, _directory: directory }
}

impl Node {
    async fn stop(self) {
        self.stop.cancel();
        self.groups.shutdown().await;
        tokio::time::timeout(PATIENCE, self.running).await.expect("the node stops").unwrap().unwrap();
    }
}

/// Repeats a request until it succeeds.
async fn until_ok<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, ApiError>) -> T {
    let since = tokio::time::Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{what}: {error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn put_as(sequence: i32) -> Produce {
    let producer = Some(ProducerIdentity { producer_id: 7_000, epoch: 0, sequence });
    Produce { target: target("t"), producer, ..append(vec![record("idempotent")]) }
}

fn put_if(expectation: Expectation) -> Produce {
    Produce { target: target("t"), expectation: Some(expectation), ..append(vec![keyed("k", "conditional")]) }
}

fn commit(group: &str, offset: i64) -> Commit {
    let offset = CommittedOffset { topic: "t".into(), partition: 0, offset, metadata: String::new() };
    Commit { group: group.into(), offsets: vec![offset], ..Commit::default() }
}

/// The old leader must not have said anything about the log or the group.
fn is_refused<T: std::fmt::Debug>(what: &str, answer: Result<T, ApiError>) {
    match answer {
        Err(error) if matches!(error.reason, Reason::NotLeader | Reason::Unavailable) => {}
        other => panic!("{what}: a leader that was cut off answered {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_cut_off_states_nothing_about_its_log_or_its_groups() {
    let network = Network::default();
    let mut nodes = cluster(&network).await;
    let topic = NewTopic {
        name: "t".into(),
        partitions: 1,
        replication_factor: 3,
        settings: SettingsChange::default(),
        if_not_exists: true,
    };
    until_ok("create topic", async || nodes[0].broker.create_topic(topic.clone()).await).await;
    // Offset 0: sequence 0. Offset 1: the key's first version.
    until_ok("first append", async || nodes[0].broker.produce(put_as(0), Route::Leader).await).await;
    let version = |version| Expectation::KeyVersion { key: "k".into(), version };
    until_ok("first version", async || nodes[0].broker.produce(put_if(version(-1)), Route::Leader).await).await;
    let mut led = None;
    for (number, node) in nodes.iter().enumerate() {
        if node.broker.offsets(&target("t"), None, Route::Local).await.is_ok() {
            led = Some(number);
        }
    }
    let old = nodes.remove(led.expect("a node leads"));
    // A group that the same node coordinates.
    let mut names = (0..).map(|number| format!("g{number}"));
    let group = until_ok("a group", async || {
        let name = names.next().unwrap();
        old.groups.commit(commit(&name, 1)).await.map(|()| name)
    })
    .await;

    network.cut(&old);
    // Never forwards: a node that has not noticed yet would wait for the old leader.
    let mut turn = 0;
    let new = until_ok("another leader", async || {
        turn += 1;
        let node = &nodes[turn % nodes.len()];
        node.broker.offsets(&target("t"), None, Route::Local).await.map(|_| turn % nodes.len())
    })
    .await;
    let new = &nodes[new].broker;
    // Offsets 2 and 3: sequences 1 and 2. Offset 4: the key's second version.
    for request in [put_as(1), put_as(2), put_if(version(1))] {
        until_ok("append", async || new.produce(request.clone(), Route::Local).await).await;
    }
    assert_eq!(new.offsets(&target("t"), None, Route::Local).await.unwrap().next, 5);
    let mut turn = 0;
    until_ok("commit", async || {
        turn += 1;
        nodes[turn % nodes.len()].groups.commit(commit(&group, 2)).await
    })
    .await;
    let join = Heartbeat { group: group.clone(), topics: vec!["t".into()], ..Heartbeat::default() };
    let member = until_ok("join", async || {
        turn += 1;
        nodes[turn % nodes.len()].groups.heartbeat(join.clone()).await
    })
    .await;
    let beat = Heartbeat { member_id: member.member_id, generation: member.generation, ..join };

    // All at once: each waits until the old leader knows that nobody confirms it.
    let fetch = |from, max_wait, route| {
        let request = Fetch { target: target("t"), from, max_bytes: 0, max_wait };
        old.broker.fetch(request, route)
    };
    let moment = Duration::from_millis(1);
    let appends: [(&str, BoxFuture<'_, Result<_, ApiError>>); 3] = [
        ("the repeat of an acknowledged sequence", old.broker.produce(put_as(2), Route::Local).boxed()),
        ("a version", old.broker.produce(put_if(version(4)), Route::Local).boxed()),
        ("an offset", old.broker.produce(put_if(Expectation::NextOffset(5)), Route::Local).boxed()),
    ];
    let reads: [(&str, BoxFuture<'_, Result<_, ApiError>>); 6] = [
        ("its end", fetch(Position::Offset(2), Duration::ZERO, Route::Leader).boxed()),
        ("past its end", fetch(Position::Offset(3), Duration::ZERO, Route::Leader).boxed()),
        ("after a wait", fetch(Position::Offset(2), moment, Route::Leader).boxed()),
        ("its end, here", fetch(Position::Offset(2), Duration::ZERO, Route::Local).boxed()),
        ("past its end, here", fetch(Position::Offset(3), moment, Route::Local).boxed()),
        ("a time", fetch(Position::Timestamp(i64::MAX), moment, Route::Local).boxed()),
    ];
    let appends = futures::future::join_all(appends.into_iter().map(|(what, answer)| async move {
        is_refused(what, answer.await);
    }));
    let reads = futures::future::join_all(reads.into_iter().map(|(what, answer)| async move {
        is_refused(what, answer.await);
    }));
    let offsets = async {
        is_refused("offsets", old.broker.offsets(&target("t"), None, Route::Leader).await);
        is_refused("end of a term", old.broker.end_of_term(&target("t"), 1).await);
    };
    let of_group = async {
        let (wanted, beats) = (Partitions::new(), beat.clone());
        let (stored, heartbeat, left, described) = tokio::join!(
            old.groups.offsets(&group, &wanted),
            old.groups.heartbeat(beats),
            old.groups.leave(&group, &beat.member_id),
            old.groups.describe(&group),
        );
        is_refused("stored offsets", stored);
        is_refused("a member that joined elsewhere", heartbeat);
        is_refused("a member that leaves", left);
        is_refused("a description", described);
    };
    tokio::join!(appends, reads, offsets, of_group);
    // Records that are there never change: any replica may return them.
    assert_eq!(fetch(Position::Offset(0), Duration::ZERO, Route::Local).await.unwrap().start_offset, 0);
    let stopped = nodes.into_iter().chain([old]).map(Node::stop);
    futures::future::join_all(stopped).await;
}
