//! One trace from the producer through every replica to the consumer, as it arrives in the OpenTelemetry Collector.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use chronicle_client::{Client, ConsumerConfig, Partition, ProducerConfig, Record, trace};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::collector::{Collector, Span};
use opentelemetry::trace::{FutureExt, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

const TOPIC: &str = "traced";

/// Sends spans of this process to the collector.
fn provider(collector: &Collector) -> Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(collector.grpc()).build()?;
    let resource = Resource::builder().with_attribute(KeyValue::new("service.name", "test")).build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    global::set_tracer_provider(provider.clone());
    Ok(provider)
}

/// The spans of one trace.
struct Tree(Vec<Span>);

impl Tree {
    fn children(&self, parent: &Span) -> Vec<&Span> {
        self.0.iter().filter(|span| span.parent == parent.id).collect()
    }

    /// Names of the children, sorted.
    fn names(&self, parent: &Span) -> Vec<&str> {
        let mut names: Vec<&str> = self.children(parent).into_iter().map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn only(&self, parent: &Span, name: &str) -> Result<&Span> {
        let found: Vec<&Span> = self.children(parent).into_iter().filter(|span| span.name == name).collect();
        ensure!(found.len() == 1, "{} of {name} below {}: {:#?}", found.len(), parent.name, self.0);
        Ok(found[0])
    }

    fn root(&self, name: &str) -> Result<&Span> {
        let found = self.0.iter().find(|span| span.parent.is_empty() && span.name == name);
        found.ok_or_else(|| anyhow::anyhow!("no root {name}: {:#?}", self.0))
    }

    /// What an append looks like below the span of its request on `leader`.
    fn check_append(&self, request: &Span, leader: &str) -> Result<()> {
        let stages = ["append", "apply", "commit", "flush", "queue", "replicate", "replicate"];
        ensure!(self.names(request) == stages, "below {}: {:?}", request.name, self.names(request));
        ensure!(self.children(request).iter().all(|stage| stage.node() == leader), "{:#?}", self.0);
        let mut followers = BTreeSet::new();
        for replicate in self.children(request).into_iter().filter(|span| span.name == "replicate") {
            ensure!(self.names(replicate) == ["append", "flush"], "{:#?}", self.0);
            ensure!(replicate.kind == "Client", "{replicate:?}");
            let nodes: BTreeSet<&str> = self.children(replicate).iter().map(|span| span.node()).collect();
            ensure!(nodes.len() == 1, "both of one follower: {nodes:?}");
            followers.extend(nodes);
        }
        ensure!(followers.len() == 2 && !followers.contains(leader), "followers of {leader}: {followers:?}");
        Ok(())
    }
}

/// Waits until a trace looks as it should.
async fn arrives(collector: &Collector, trace: &str, check: impl Fn(&Tree) -> Result<()>) -> Result<()> {
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let tree = Tree(collector.spans()?.into_iter().filter(|span| span.trace == trace).collect());
        match check(&tree) {
            Ok(()) => return Ok(()),
            Err(error) if tokio::time::Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_shows_an_append_from_its_producer_through_every_replica_to_its_consumer() -> Result<()> {
    let collector = Collector::start()?;
    let provider = provider(&collector)?;
    let mut cluster = Cluster::of(3)
        .set("telemetry.traces.endpoint", collector.grpc())
        .set("telemetry.traces.sampling-ratio", 0)
        .set("telemetry.traces.interval-ms", 100)
        .prepare()?;
    // One of them by the other protocol: the path is its own to add.
    cluster.node_mut(2).set("telemetry.traces.protocol", "http");
    cluster.node_mut(2).set("telemetry.traces.endpoint", collector.http());
    cluster.start_all()?;
    cluster.settled().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    let leader = cluster.leader(TOPIC, 0).await?;
    let leader_name = format!("node-{leader}");

    let client = Client::connect(cluster.servers().as_str())?;
    let partition = Partition::new(TOPIC, 0);
    let producer = client.producer(partition.clone(), ProducerConfig::default());
    // Outside any span, and with a ratio of 0: not traced.
    producer.send(Record::value("untraced")).await?.await?;
    let tracer = provider.tracer("test");
    let root = Context::new().with_span(tracer.start("checkout"));
    let trace_id = root.span().span_context().trace_id().to_string();
    let offset = producer.send(Record::value("traced")).with_context(root.clone()).await?.await?;
    producer.close().await?;

    let mut consumer = client.consumer(partition.clone(), ConsumerConfig::from_offset(0).until(offset + 1));
    let untraced = consumer.next().await?.expect("the first record");
    ensure!(!trace::context_of(&untraced).span().span_context().is_valid() && untraced.headers.is_empty());
    let record = consumer.next().await?.expect("the second record");
    ensure!(trace::context_of(&record).span().span_context().trace_id().to_string() == trace_id);
    drop(trace::process(&partition, &record));
    drop(root);
    let flushing = provider.clone();
    tokio::task::spawn_blocking(move || flushing.force_flush()).await??;

    let cluster_id = cluster.status(0).await?.cluster_id;
    arrives(&collector, &trace_id, |tree| {
        let root = tree.root("checkout")?;
        let send = tree.only(root, "send traced")?;
        ensure!(tree.names(send) == ["Log/ProduceStream", "process traced"], "{:?}", tree.names(send));
        ensure!(send.kind == "Producer" && tree.only(send, "process traced")?.kind == "Consumer");
        let request = tree.only(send, "Log/ProduceStream")?;
        ensure!(request.kind == "Server" && request.node() == leader_name, "{request:?}");
        ensure!(request.attributes.get("messaging.destination.name").is_some_and(|topic| topic == TOPIC));
        tree.check_append(request, &leader_name)?;
        for span in tree.0.iter().filter(|span| !span.node().is_empty()) {
            ensure!(span.resource.get("service.name").is_some_and(|name| name == "chronicle"), "{span:?}");
            ensure!(span.resource.get("chronicle.cluster.id") == Some(&cluster_id), "{span:?}");
        }
        Ok(())
    })
    .await?;

    // By HTTP, at a node that does not lead: the request comes by two nodes.
    let other = (leader + 1) % 3;
    let url = format!("http://{}/v1/topics/{TOPIC}/partitions/0/records", cluster.node(other).address());
    let post = |flags: &str, trace: &str| {
        let traceparent = format!("00-{trace}-00f067aa0ba902b7-{flags}");
        reqwest::Client::new().post(&url).header("traceparent", traceparent).body("by HTTP").send()
    };
    let (quiet, traced) = ("4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4737");
    post("00", quiet).await?.error_for_status()?;
    post("01", traced).await?.error_for_status()?;
    arrives(&collector, traced, |tree| {
        let remote = Span { id: "00f067aa0ba902b7".into(), ..Span::default() };
        let at_other = tree.only(&remote, "HTTP POST records")?;
        ensure!(at_other.node() == format!("node-{other}"), "{at_other:?}");
        let at_leader = tree.only(at_other, "Peer/Forward")?;
        ensure!(at_leader.node() == leader_name, "{at_leader:?}");
        tree.check_append(at_leader, &leader_name)
    })
    .await?;
    // What was not to be traced is not, and nothing else began a trace.
    let traces: BTreeSet<String> = collector.spans()?.into_iter().map(|span| span.trace).collect();
    ensure!(traces == BTreeSet::from([trace_id, traced.to_owned()]), "{traces:?}");
    let provider = provider.clone();
    tokio::task::spawn_blocking(move || provider.shutdown()).await??;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_sends_the_spans_that_are_left() -> Result<()> {
    let collector = Collector::start()?;
    let mut cluster = Cluster::of(1)
        .set("telemetry.traces.endpoint", collector.grpc())
        .set("telemetry.traces.sampling-ratio", 1)
        .set("telemetry.traces.interval-ms", 3_600_000)
        .start()
        .await?;
    let answer = reqwest::Client::new().post(format!("http://{}/", cluster.node(0).address())).body("x").send().await?;
    answer.error_for_status()?;
    ensure!(collector.spans()?.is_empty(), "an hour has not passed");
    cluster.terminate(0)?;
    let spans = collector.spans()?;
    let roots = spans.iter().filter(|span| span.parent.is_empty() && span.name == "HTTP POST records").count();
    ensure!(roots == 1, "{spans:#?}");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_stops_in_time_although_its_collector_does_not_answer() -> Result<()> {
    // Takes connections, and nothing from them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut cluster = Cluster::of(1)
        .set("telemetry.traces.endpoint", format!("http://{}", silent.local_addr()?))
        .set("telemetry.traces.sampling-ratio", 1)
        .set("telemetry.traces.shutdown-ms", 200)
        .set("telemetry.traces.export-timeout-ms", 3_600_000)
        .start()
        .await?;
    let answer = reqwest::Client::new().post(format!("http://{}/", cluster.node(0).address())).body("x").send().await?;
    answer.error_for_status()?;
    cluster.terminate(0)?;
    ensure!(cluster.node(0).whole_log().contains("the last spans were not sent"), "{}", cluster.node(0).whole_log());
    cluster.finish()
}
