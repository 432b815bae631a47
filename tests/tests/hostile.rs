//! Clients that mean harm: bytes that are no protocol, frames that lie, headers without an end, bodies that trickle, connections
//! by the thousand. Whatever they send, the node goes on, keeps what it accepted, and does not grow.
//!
//! Certificates that are wrong, old, early or another's are in `clusters/tls.rs`.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronicle_client::{Client, ClientConfig, TlsConfig};
use chronicle_proto::internal::HelloRequest;
use chronicle_proto::v1;
use chronicle_tests::api;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::node::{Node, PATIENCE, Setup};
use chronicle_tests::tls::{self, Authority};
use chronicle_tests::wire::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::json;

const TOPIC: &str = "default";
/// What a node may grow by while it is sent nonsense.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

fn metric(node: &Node, line: &str) -> Result<f64> {
    node.metric(line)?.with_context(|| format!("no {line}"))
}

/// By how much a node's memory has grown beyond the most that it had.
fn growth_bytes(node: &Node, peak: u64) -> Result<u64> {
    Ok(node.memory_bytes("VmHWM")? - peak)
}

/// The node runs, has said nothing of a panic, holds no connections or bytes of the attack, and appends.
async fn is_well(node: &Node) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (connections, bytes) =
            (metric(node, "chronicle_connections_open")?, metric(node, "chronicle_in_flight_bytes")?);
        if connections == 0.0 && bytes == 0.0 {
            break;
        }
        ensure!(Instant::now() < deadline, "{connections} connections and {bytes} bytes are held");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = api::log(node.address()).await?;
    api::append(&mut client, TOPIC, "still here".into()).await?;
    ensure!(!node.whole_log().contains("panicked"), "{}", node.log());
    Ok(())
}

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn noise(numbers: &mut StdRng, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    numbers.fill_bytes(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_do_no_harm() -> Result<()> {
    let mut node = blocking(|| Setup::new().set("limits.header-timeout-ms", 300).start())?;
    let address = node.address();
    // The same in every run.
    let mut numbers = StdRng::seed_from_u64(20_261_121);
    let begins: [&[u8]; 8] = [
        b"",
        PREFACE,
        b"POST / HTTP/1.1\r\nhost: node\r\n",
        b"CHRONICLE PEER 1\r\n\r\n\r\n\r\n",
        b"CHRONICLE BEAT 1\r\n\r\n\r\n\r\n",
        b"CHRONICLE CALL 1\r\n\r\n\r\n\r\n",
        b"CHRONICLE CALL 9\r\n\r\n\r\n\r\n",
        &[22, 3, 1],
    ];
    let peak = node.memory_bytes("VmHWM")?;
    for round in 0..96 {
        let mut bytes = begins[round % begins.len()].to_vec();
        if bytes == PREFACE || bytes.starts_with(b"CHRONICLE ") {
            // A peer speaks HTTP/2 behind its first bytes.
            if bytes != PREFACE {
                bytes.extend_from_slice(PREFACE);
            }
            bytes.extend(wire::frame(SETTINGS, 0, 0, &[]));
            // Frames whose heads are believable and whose contents are not.
            for _ in 0..numbers.random_range(0..8) {
                let (kind, flags) = (numbers.random_range(0..11), numbers.random());
                let (stream, length) = (numbers.random_range(0..9), numbers.random_range(0..300));
                bytes.extend(wire::frame(kind, flags, stream, &noise(&mut numbers, length)));
            }
        }
        let count = numbers.random_range(0..4096);
        bytes.extend(noise(&mut numbers, count));
        let taken = blocking(|| wire::send(address, [bytes], PATIENCE))?;
        ensure!(taken.closed, "round {round}: the connection stays open");
        ensure!(node.is_running(), "round {round}: {}", node.log());
    }
    is_well(&node).await?;
    let growth = growth_bytes(&node, peak)?;
    ensure!(growth < GROWTH_BYTES_MAX, "it grew by {growth} bytes");
    ensure!(blocking(|| node.terminate())?.0.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_lie_end_their_connection_and_nothing_else() -> Result<()> {
    let node = blocking(|| Setup::new().set("limits.header-timeout-ms", 300).start())?;
    let address = node.address();
    let begin = [PREFACE, &wire::frame(SETTINGS, 0, 0, &[])].concat();
    let produce = wire::call("/chronicle.v1.Log/Produce");
    let open = wire::frame(HEADERS, END_HEADERS, 1, &produce);
    let endless =
        || std::iter::repeat_with(|| wire::frame(CONTINUATION, 0, 1, &wire::headers(&[("x", "y")]).repeat(500)));
    let resets = || {
        (0..100_000u32).map(|number| {
            let stream = 2 * number + 1;
            [wire::frame(HEADERS, END_HEADERS, stream, &produce), wire::frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                .concat()
        })
    };
    let limit = 64 << 20;
    let peak = node.memory_bytes("VmHWM")?;
    for (what, pieces) in [
        ("a frame longer than any allowed", vec![wire::head((16 << 20) - 1, DATA, 0, 1).to_vec(), vec![0; 1 << 20]]),
        ("a frame cut short", vec![open.clone(), wire::head(100, DATA, END_STREAM, 1).to_vec(), vec![0; 50]]),
        ("a message that says to be 4 GiB", vec![open.clone(), wire::frame(DATA, 0, 1, &[0, 255, 255, 255, 255])]),
        ("a message cut short", vec![open.clone(), wire::frame(DATA, END_STREAM, 1, &[0, 0, 0, 1, 0, 7])]),
        ("data of a stream that is not open", vec![wire::frame(DATA, 0, 77, &[0; 100])]),
        ("a stream of the server's", vec![wire::frame(HEADERS, END_HEADERS, 2, &produce)]),
        ("headers that are no header block", vec![wire::frame(HEADERS, END_HEADERS, 1, &[0xff; 200])]),
        ("settings of an odd length", vec![wire::frame(SETTINGS, 0, 0, &[1, 2, 3])]),
    ] {
        let pieces = std::iter::once(begin.clone()).chain(pieces);
        let taken = blocking(|| wire::send(address, pieces, PATIENCE))?;
        ensure!(taken.closed, "{what}: the connection stays open");
    }
    for (what, pieces) in [
        ("headers without an end", Box::new(endless()) as Box<dyn Iterator<Item = Vec<u8>>>),
        ("streams that are reset at once", Box::new(resets())),
        (
            "settings without an end",
            Box::new((0..).map(|_| wire::frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]).repeat(500))),
        ),
        ("pings whose answers are not read", Box::new((0..).map(|_| wire::frame(PING, 0, 0, &[7; 8]).repeat(500)))),
    ] {
        let first = if what.starts_with("headers") {
            [&begin[..], &wire::frame(HEADERS, 0, 1, &produce)].concat()
        } else {
            begin.clone()
        };
        let mut bytes = 0;
        // What is answered is read, so whatever is allowed at all goes on: it must cost nothing but time.
        let pieces = std::iter::once(first).chain(pieces).take_while(|piece| {
            bytes += piece.len();
            bytes < limit
        });
        let taken = blocking(|| wire::send(address, pieces, PATIENCE))?;
        ensure!(taken.closed, "{what}: the connection stays open after {} bytes", taken.sent);
        let ends_early = what.starts_with("headers") || what.starts_with("streams");
        ensure!(!ends_early || taken.sent < 8 << 20, "{what}: {} bytes were taken", taken.sent);
    }
    is_well(&node).await?;
    let growth = growth_bytes(&node, peak)?;
    ensure!(growth < GROWTH_BYTES_MAX, "it grew by {growth} bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_of_http_1_without_an_end_is_refused() -> Result<()> {
    let node = blocking(|| Setup::new().set("limits.header-timeout-ms", 300).start())?;
    let begin = b"POST / HTTP/1.1\r\nhost: node\r\n".to_vec();
    let lines = std::iter::repeat_with(|| b"x-more: and more\r\n".repeat(50));
    let taken = blocking(|| wire::send(node.address(), std::iter::once(begin).chain(lines), PATIENCE))?;
    ensure!(taken.closed && taken.sent < 8 << 20, "{} bytes were taken", taken.sent);
    ensure!(taken.answer.is_empty() || taken.text().starts_with("HTTP/1.1 431 "), "{}", taken.text());
    let long = [b"GET /".to_vec(), vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n".to_vec()];
    let taken = blocking(|| wire::send(node.address(), long, PATIENCE))?;
    ensure!(taken.closed && !taken.text().starts_with("HTTP/1.1 2"), "{}", taken.text());
    is_well(&node).await
}

/// A body a byte at a time, each in time for itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_refused_and_an_idle_stream_is_not() -> Result<()> {
    let node = blocking(|| Setup::new().set("limits.body-timeout-ms", 400).start())?;
    let address = node.address();
    let slowly = |bytes: Vec<u8>| {
        bytes.into_iter().map(|byte| {
            std::thread::sleep(Duration::from_millis(50));
            vec![byte]
        })
    };
    let begin = b"POST / HTTP/1.1\r\nhost: node\r\ncontent-length: 1000\r\n\r\n".to_vec();
    let pieces = std::iter::once(begin).chain(slowly(vec![b'x'; 999]));
    let taken = blocking(|| wire::send(address, pieces, PATIENCE))?;
    ensure!(taken.text().starts_with("HTTP/1.1 400 ") && taken.text().contains("limits.body-timeout-ms"), "{taken:?}");
    ensure!(taken.sent < 900, "{} bytes were waited for", taken.sent);

    // A gRPC message whose frames hold a byte each. The refusal ends its stream before the client does.
    let begin = [
        PREFACE,
        &wire::frame(SETTINGS, 0, 0, &[]),
        &wire::frame(HEADERS, END_HEADERS, 1, &wire::call("/chronicle.v1.Log/Produce")),
        &wire::frame(DATA, 0, 1, &[0, 0, 0, 3, 232]),
    ]
    .concat();
    let frames = slowly(vec![b'x'; 400]).map(|byte| wire::frame(DATA, 0, 1, &byte));
    let taken = blocking(|| wire::send(address, std::iter::once(begin).chain(frames), PATIENCE))?;
    let ended = wire::frames(&taken.answer, 1).contains(&(HEADERS, END_HEADERS | END_STREAM));
    ensure!(ended, "{:?}", wire::frames(&taken.answer, 1));

    // Between two messages a stream may wait.
    let mut client = api::log(address).await?;
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let request = |value: &'static str| v1::ProduceRequest {
        partition: api::partition(TOPIC),
        records: vec![v1::Record { value: Some(value.into()), ..Default::default() }],
        ..Default::default()
    };
    sender.send(request("first")).await?;
    let mut answers = client.produce_stream(tokio_stream::wrappers::ReceiverStream::new(requests)).await?.into_inner();
    ensure!(answers.message().await?.is_some());
    tokio::time::sleep(Duration::from_millis(1000)).await;
    sender.send(request("second")).await?;
    ensure!(answers.message().await?.is_some(), "the stream ended while it rested");
    drop((sender, answers, client));
    is_well(&node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_every_slot_and_idle_connections_end() -> Result<()> {
    let setup = Setup::new().set("limits.connections-per-address-max", 3).set("limits.idle-ms", 1500);
    let node = blocking(|| setup.start())?;
    let address = node.address();
    let mut held: Vec<TcpStream> =
        blocking(|| (0..3).map(|_| TcpStream::connect(address)).collect::<std::io::Result<_>>())?;
    for stream in &mut held {
        // HTTP/2 that keeps its connection and asks for nothing: pings of the node are answered below.
        stream.write_all(PREFACE)?;
        stream.write_all(&wire::frame(SETTINGS, 0, 0, &[]))?;
    }
    let deadline = Instant::now() + PATIENCE;
    while metric(&node, "chronicle_connections_open")? < 3.0 {
        ensure!(Instant::now() < deadline, "three connections are not open");
    }
    let url = format!("http://{address}/");
    let refused = reqwest::Client::new().get(&url).send().await?;
    let (status, text) = (refused.status(), refused.text().await?);
    ensure!(status == 503 && text.contains("limits.connections-per-address-max"), "{status}: {text}");
    ensure!(metric(&node, "chronicle_connections_refused_total{cause=\"address_limit\"}")? == 1.0);
    let other: IpAddr = "127.0.0.2".parse()?;
    let elsewhere = reqwest::Client::builder().local_address(other).pool_max_idle_per_host(0).build()?;
    ensure!(elsewhere.get(&url).send().await?.status() == 200, "another address is refused");

    let ended = std::thread::spawn(move || -> std::io::Result<()> {
        for mut stream in held {
            stream.set_read_timeout(Some(PATIENCE))?;
            std::io::copy(&mut stream, &mut std::io::sink())?;
        }
        Ok(())
    });
    blocking(|| ended.join()).ok().context("the reader panicked")??;
    is_well(&node).await
}

/// Certificates of the right CA for the wrong purpose.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_no_rights_as_a_client_and_a_client_is_no_node() -> Result<()> {
    let cluster = Cluster::of(1).secured();
    let cluster = cluster
        .set("security.authorization.enabled", true)
        .set("security.authorization.super-users", json!([tls::ADMIN]))
        .start()
        .await?;
    let address = cluster.node(0).address();
    let authority = &cluster.secured().authority;
    let ask = async |tls: TlsConfig| {
        let config = ClientConfig::new(address.to_string()).tls(tls).request_timeout(PATIENCE);
        Client::connect(config)?.get_servers().await.map_err(anyhow::Error::from)
    };
    ask(cluster.secured().client.client()).await?;
    for name in ["node-0", "node-5"] {
        let node = authority.node(name, "127.0.0.1", &[])?;
        let refused =
            ask(authority.trusted(Some(&node))).await.expect_err("a node's certificate has rights").to_string();
        ensure!(refused.contains("PERMISSION_DENIED"), "{name}: {refused}");
    }
    let node = authority.node("node-5", "127.0.0.1", &[])?;
    for (what, pair, name, is_answered) in [
        ("a node's own", &node, "node-5", true),
        ("another node's", &node, "node-0", false),
        ("a client's", &authority.client("ben", &[])?, "ben", false),
        ("the super user's", &authority.client(tls::ADMIN, &[])?, "node-5", false),
    ] {
        let answer = blocking(|| say_hello(address, authority, pair, name, b"chronicle-peer"))?;
        let answered = wire::frames(&answer, 1).iter().any(|(kind, _)| *kind == DATA);
        ensure!(answered == is_answered, "{what} certificate: {:?}", wire::frames(&answer, 1));
    }
    // A node's certificate, over a connection for clients.
    let answer = blocking(|| say_hello(address, authority, &node, "node-5", b"h2"))?;
    ensure!(!wire::frames(&answer, 1).iter().any(|(kind, _)| *kind == DATA), "{:?}", wire::frames(&answer, 1));
    cluster.finish()
}

/// Offers a protocol (ALPN) and speaks as a node of this name; answers what comes back.
fn say_hello(
    address: SocketAddr,
    authority: &Authority,
    pair: &tls::Pair,
    name: &str,
    protocol: &[u8],
) -> Result<Vec<u8>> {
    let mut stream = tls::raw(address, authority, pair, protocol)?;
    let hello = HelloRequest {
        node_id: "0190a0c0-0000-7000-8000-000000000001".into(),
        protocol: 1,
        name: name.into(),
        address: "127.0.0.1:1".into(),
    };
    let hello = hello.encode_to_vec();
    let bytes = [
        b"CHRONICLE PEER 1\r\n\r\n\r\n\r\n",
        PREFACE,
        &wire::frame(SETTINGS, 0, 0, &[]),
        &wire::frame(HEADERS, END_HEADERS, 1, &wire::call("/chronicle.internal.v1.Peer/Hello")),
        &wire::frame(DATA, END_STREAM, 1, &[&[0, 0, 0, 0, hello.len() as u8][..], &hello].concat()),
    ]
    .concat();
    // Whether it is taken is seen by the answer.
    let _ = stream.write_all(&bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // Until the node closes or has nothing more to say.
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..read]);
    }
    Ok(answer)
}
