//! The gRPC listener over real sockets.

use std::time::Duration;

use crate::serving::Node;
use bytes::Bytes;
use chronicle_proto::v1::admin_client::AdminClient;
use chronicle_proto::v1::cluster_client::ClusterClient;
use chronicle_proto::v1::log_client::LogClient;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use chronicle_proto::v1::{self as proto, position::At};
use chronicle_records::{BatchBuilder, Compression};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

impl Node {
    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(self.url("")).unwrap()
    }

    async fn log(&self) -> LogClient<Channel> {
        LogClient::new(self.endpoint().connect().await.unwrap()).max_decoding_message_size(64 << 20)
    }
}

fn record(value: impl Into<Bytes>) -> proto::Record {
    proto::Record { value: Some(value.into()), ..Default::default() }
}

fn produce(value: impl Into<Bytes>) -> proto::ProduceRequest {
    proto::ProduceRequest { records: vec![record(value)], ..Default::default() }
}

fn at(at: At) -> Option<proto::Position> {
    Some(proto::Position { at: Some(at) })
}

fn from(offset: i64) -> proto::ConsumeRequest {
    proto::ConsumeRequest { from: at(At::Offset(offset)), ..Default::default() }
}

/// Code and reason of a status.
fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

fn value(status: &Status, name: &str) -> String {
    status.get_details_error_info().unwrap().metadata[name].clone()
}

fn batch(values: &[&'static str]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for value in values {
        builder.push(1, None, Some(value.as_bytes()), []).unwrap();
    }
    builder.build().unwrap().freeze()
}

#[tokio::test]
async fn records_are_appended_and_read_back_with_everything() {
    let node = Node::start().await;
    let mut log = node.log().await;
    let header = |key: &str, value| proto::Header { key: key.into(), value };
    let written = proto::Record {
        key: Some(Bytes::from_static(b"k")),
        value: Some(Bytes::from_static(b"\x00v")),
        headers: vec![header("b", None), header("a", Some(Bytes::from_static(b"1"))), header("b", Some(Bytes::new()))],
        timestamp_ms: Some(1700000000000),
    };
    let records = vec![written.clone(), proto::Record::default()];
    let request = proto::ProduceRequest { records, compression: proto::Compression::Lz4.into(), ..Default::default() };
    let appended = log.produce(request).await.unwrap().into_inner();
    assert_eq!(appended, proto::ProduceResponse { base_offset: 0, record_count: 2, duplicate: false });
    let read = log.consume(proto::ConsumeRequest::default()).await.unwrap().into_inner();
    assert_eq!((read.next_offset, read.high_watermark, read.log_start_offset), (2, 2, 0));
    let first = &read.records[0];
    assert_eq!((&first.key, &first.value, &first.headers), (&written.key, &written.value, &written.headers));
    assert_eq!((first.offset, first.timestamp_ms), (0, 1700000000000));
    assert_eq!((read.records[1].offset, &read.records[1].value, &read.records[1].key), (1, &None, &None));
    let one = log.consume(proto::ConsumeRequest { max_records: 1, ..from(0) }).await.unwrap().into_inner();
    assert_eq!((one.records.len(), one.next_offset), (1, 1));
    node.stop().await;
}

#[tokio::test]
async fn a_whole_batch_is_stored_as_it_is_and_read_raw() {
    let node = Node::start().await;
    let mut log = node.log().await;
    log.produce(produce("0")).await.unwrap();
    let sent = batch(&["a", "b"]);
    let appended = log.produce(proto::ProduceRequest { batch: sent.clone(), ..Default::default() }).await.unwrap();
    assert_eq!((appended.get_ref().base_offset, appended.get_ref().record_count), (1, 2));
    let raw = log.consume(proto::ConsumeRequest { raw_batches: true, ..from(1) }).await.unwrap().into_inner();
    // All but base offset and leader epoch, and what lies between them, is as it was sent.
    assert_eq!(raw.batches[0][16..], sent[16..]);
    assert_eq!(raw.next_offset, 3);
    node.stop().await;
}

#[tokio::test]
async fn bad_input_has_its_own_error_and_does_no_harm() {
    let node = Node::start_with(|config| config.limits.request_bytes_max = 2 << 20).await;
    let mut log = node.log().await;
    log.produce(produce("first")).await.unwrap();
    let partition = |topic: &str, partition| Some(proto::Partition { topic: topic.into(), partition });
    let mut damaged = batch(&["abc"]).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let mut foreign = batch(&["abc"]).to_vec();
    foreign[22] |= 7;
    let batch = |batch: Vec<u8>| proto::ProduceRequest { batch: batch.into(), ..Default::default() };
    for (request, expected) in [
        (proto::ProduceRequest::default(), (Code::InvalidArgument, "INVALID_REQUEST")),
        (proto::ProduceRequest { partition: partition("none", 0), ..produce("x") }, (Code::NotFound, "UNKNOWN_TOPIC")),
        (proto::ProduceRequest { partition: partition("", 7), ..produce("x") }, (Code::NotFound, "UNKNOWN_PARTITION")),
        (proto::ProduceRequest { compression: 9, ..produce("x") }, (Code::InvalidArgument, "UNSUPPORTED_COMPRESSION")),
        (batch(foreign), (Code::InvalidArgument, "UNSUPPORTED_COMPRESSION")),
        (batch(damaged), (Code::InvalidArgument, "CORRUPT_BATCH")),
        (batch(vec![7; 100]), (Code::InvalidArgument, "CORRUPT_BATCH")),
        (produce(vec![7; (1 << 20) + 4096]), (Code::InvalidArgument, "RECORD_TOO_LARGE")),
        (produce(vec![7; 3 << 20]), (Code::InvalidArgument, "RECORD_TOO_LARGE")),
    ] {
        let status = log.produce(request).await.unwrap_err();
        let (code, reason) = reason(&status);
        assert_eq!((code, reason.as_str()), expected, "{status:?}");
    }
    for (request, expected) in [
        (from(-1), (Code::InvalidArgument, "INVALID_REQUEST")),
        (from(1), (Code::OutOfRange, "OFFSET_OUT_OF_RANGE")),
        (proto::ConsumeRequest { max_wait_ms: 30_000, ..from(2) }, (Code::OutOfRange, "OFFSET_OUT_OF_RANGE")),
    ] {
        let status = log.consume(request).await.unwrap_err();
        let (code, reason) = reason(&status);
        assert_eq!((code, reason.as_str()), expected, "{status:?}");
        if code == Code::OutOfRange {
            assert_eq!((value(&status, "earliest"), value(&status, "next")), ("0".into(), "1".into()));
        }
    }
    let read = log.consume(from(0)).await.unwrap().into_inner();
    assert_eq!((read.records.len(), read.next_offset), (1, 1));
    assert_eq!(read.records[0].value.as_deref(), Some(&b"first"[..]));
    node.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_message_are_the_client_s_fault() {
    let node = Node::start().await;
    let http = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    for (body, code) in [(&[0u8, 0, 0, 0, 2, 0xff, 0xff][..], "3"), (&[9, 0, 0, 0, 0], "3"), (&[0, 0, 0], "3")] {
        let request = http.post(node.url("/chronicle.v1.Log/Produce")).header("content-type", "application/grpc");
        let response = request.body(body.to_vec()).send().await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(reason(&status), (Code::InvalidArgument, "MALFORMED_BODY".into()), "{body:?} {status:?}");
        assert_eq!(response.headers()["grpc-status"], code);
    }
    let request = http.post(node.url("/chronicle.v1.Log/Nonsense")).header("content-type", "application/grpc");
    assert_eq!(request.send().await.unwrap().headers()["grpc-status"], "12");
    node.stop().await;
}

#[tokio::test]
async fn conflicts_carry_the_current_version_and_repetitions_are_stored_once() {
    let node = Node::start().await;
    let mut log = node.log().await;
    let expecting = |offset| proto::ProduceRequest {
        expectation: Some(proto::Expectation { expect: Some(proto::expectation::Expect::NextOffset(offset)) }),
        ..produce("x")
    };
    log.produce(expecting(0)).await.unwrap();
    let status = log.produce(expecting(0)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "VERSION_CONFLICT".into()));
    assert_eq!(value(&status, "current"), "1");
    let producer = log.init_producer(proto::InitProducerRequest {}).await.unwrap().into_inner();
    let identified = |sequence| proto::ProduceRequest {
        producer: Some(proto::ProducerIdentity { producer_id: producer.producer_id, epoch: producer.epoch, sequence }),
        ..produce("once")
    };
    let first = log.produce(identified(0)).await.unwrap().into_inner();
    let again = log.produce(identified(0)).await.unwrap().into_inner();
    assert_eq!((again.base_offset, again.duplicate), (first.base_offset, true));
    let status = log.produce(identified(5)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "OUT_OF_ORDER_SEQUENCE".into()));
    node.stop().await;
}

#[tokio::test]
async fn a_produce_stream_answers_in_order_refuses_in_order_and_continues() {
    let node = Node::start_with(|config| config.limits.stream_window_max = 16).await;
    let mut log = node.log().await;
    let requests = (0..500).map(|i| match i % 100 {
        50 => proto::ProduceRequest::default(),
        51 => proto::ProduceRequest {
            partition: Some(proto::Partition { topic: "none".into(), partition: 0 }),
            ..produce("x")
        },
        _ => produce(format!("{i}")),
    });
    let mut answers = log.produce_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut next = 0;
    for i in 0..500 {
        match (i % 100, answers.next().await.unwrap().unwrap().result.unwrap()) {
            (50, Answer::Error(error)) => assert_eq!((error.code, error.reason.as_str()), (3, "INVALID_REQUEST")),
            (51, Answer::Error(error)) => assert_eq!((error.code, error.reason.as_str()), (5, "UNKNOWN_TOPIC")),
            (_, Answer::Ok(ok)) => {
                assert_eq!((ok.base_offset, ok.record_count), (next, 1));
                next += 1;
            }
            (_, other) => panic!("{i}: {other:?}"),
        }
    }
    assert!(answers.next().await.is_none());
    assert_eq!(
        node.metric(r#"chronicle_requests_total{listener="grpc",operation="produce_stream",outcome="OK"}"#),
        490.0
    );
    assert_eq!(node.metric("chronicle_in_flight_bytes"), 0.0);
    node.stop().await;
}

#[tokio::test]
async fn a_produce_stream_releases_its_bytes_response_by_response() {
    let node = Node::start_with(|config| config.limits.in_flight_bytes_max = 4 << 20).await;
    let mut log = node.log().await;
    // Five times the node's budget through one stream.
    let requests = tokio_stream::iter((0..320).map(|_| produce(vec![7; 64 << 10])));
    let answers = log.produce_stream(requests).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), 320);
    for answer in answers {
        assert!(matches!(answer.unwrap().result, Some(Answer::Ok(_))));
    }
    node.stop().await;
}

#[tokio::test]
async fn a_produce_stream_stops_reading_while_its_client_reads_no_responses() {
    let node = Node::start_with(|config| config.limits.stream_window_max = 4).await;
    let channel = node.endpoint().initial_stream_window_size(1024).connect().await.unwrap();
    let mut log = LogClient::new(channel);
    // 2,000 requests of 8 KiB are far more than windows and buffers hold.
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    let requests = tokio_stream::iter(0..2000).map(move |_| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        produce(vec![7; 8 << 10])
    });
    let mut answers = log.produce_stream(requests).await.unwrap().into_inner();
    // Every append that is taken is answered into the windows; then nothing moves until answers are taken.
    let mut last = usize::MAX;
    while last != sent.load(std::sync::atomic::Ordering::Relaxed) {
        last = sent.load(std::sync::atomic::Ordering::Relaxed);
        node.reaches("chronicle_records_appended_total{listener=\"grpc\"}", 1.0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(last < 2000, "all requests were read although no answer was taken");
    assert!(node.metric("chronicle_in_flight_bytes") < 1e6);
    for _ in 0..2000 {
        assert!(matches!(answers.next().await.unwrap().unwrap().result, Some(Answer::Ok(_))));
    }
    assert!(answers.next().await.is_none());
    node.stop().await;
}

#[tokio::test]
async fn an_oversized_or_malformed_message_ends_a_produce_stream_after_what_came_before() {
    let node = Node::start_with(|config| config.limits.request_bytes_max = 1 << 20).await;
    let mut log = node.log().await;
    let requests = tokio_stream::iter([produce("a"), produce(vec![7; 2 << 20]), produce("b")]);
    let mut answers = log.produce_stream(requests).await.unwrap().into_inner();
    assert!(matches!(answers.next().await.unwrap().unwrap().result, Some(Answer::Ok(_))));
    let status = answers.next().await.unwrap().unwrap_err();
    assert_eq!(reason(&status), (Code::InvalidArgument, "RECORD_TOO_LARGE".into()));
    assert_eq!(value(&status, "limit"), (1 << 20).to_string());
    node.stop().await;
}

#[tokio::test]
async fn a_long_poll_is_answered_when_a_record_comes_and_empty_when_none_does() {
    let node = Node::start().await;
    let mut log = node.log().await;
    let waiting = |max_wait_ms| proto::ConsumeRequest { max_wait_ms, ..from(0) };
    let empty = log.consume(waiting(20)).await.unwrap().into_inner();
    assert_eq!((empty.records.len(), empty.next_offset), (0, 0));
    let mut other = log.clone();
    let poll = tokio::spawn(async move { other.consume(waiting(30_000)).await });
    log.produce(produce("came")).await.unwrap();
    let read = poll.await.unwrap().unwrap().into_inner();
    assert_eq!(read.records[0].value.as_deref(), Some(&b"came"[..]));
    node.stop().await;
}

#[tokio::test]
async fn a_consume_stream_follows_the_tail_until_its_end_offset() {
    let node = Node::start().await;
    let mut log = node.log().await;
    for i in 0..3 {
        log.produce(produce(format!("{i}"))).await.unwrap();
    }
    let request = proto::ConsumeStreamRequest { from: at(At::Offset(1)), until_offset: Some(6), ..Default::default() };
    let mut stream = log.consume_stream(request).await.unwrap().into_inner();
    let mut offsets = Vec::new();
    while offsets.len() < 2 {
        offsets.extend(stream.next().await.unwrap().unwrap().records.into_iter().map(|record| record.offset));
    }
    log.produce(proto::ProduceRequest { records: vec![record("x"); 5], ..Default::default() }).await.unwrap();
    while let Some(answer) = stream.next().await {
        offsets.extend(answer.unwrap().records.into_iter().map(|record| record.offset));
    }
    assert_eq!(offsets, [1, 2, 3, 4, 5]);
    let done = proto::ConsumeStreamRequest { until_offset: Some(0), ..Default::default() };
    assert!(log.consume_stream(done).await.unwrap().into_inner().next().await.is_none());
    let past = proto::ConsumeStreamRequest { from: at(At::Offset(99)), ..Default::default() };
    let status = log.consume_stream(past).await.unwrap().into_inner().next().await.unwrap().unwrap_err();
    assert_eq!(reason(&status), (Code::OutOfRange, "OFFSET_OUT_OF_RANGE".into()));
    node.stop().await;
}

#[tokio::test]
async fn a_slow_reader_s_stream_ends_with_resource_exhausted_and_its_bytes_are_freed() {
    let node = Node::start_with(|config| config.limits.slow_reader_ms = 500).await;
    let mut log = node.log().await;
    for _ in 0..6 {
        log.produce(produce(vec![7; 1 << 20])).await.unwrap();
    }
    let channel = node.endpoint().initial_stream_window_size(64 << 10).connect().await.unwrap();
    let mut slow = LogClient::new(channel).max_decoding_message_size(64 << 20);
    let mut stream = slow.consume_stream(proto::ConsumeStreamRequest::default()).await.unwrap().into_inner();
    node.reaches("chronicle_slow_readers_total", 1.0).await;
    let status = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), (Code::ResourceExhausted, "OVERLOADED".into()), "{status:?}");
    assert_eq!(value(&status, "slow_reader_ms"), "500");
    // The connection goes on for others.
    slow.produce(produce("x")).await.unwrap();
    // One that never reads again is closed.
    let mut stuck = slow.consume_stream(proto::ConsumeStreamRequest::default()).await.unwrap().into_inner();
    node.reaches("chronicle_slow_readers_total", 2.0).await;
    let freed = async {
        while node.metric("chronicle_in_flight_bytes") > 0.0 || node.metric("chronicle_connections_open") > 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), freed).await.unwrap();
    while let Some(Ok(_)) = stuck.next().await {}
    node.stop().await;
}

#[tokio::test]
async fn a_message_over_the_byte_budget_is_rejected_as_overloaded() {
    let node = Node::start_with(|config| config.limits.in_flight_bytes_max = 100_000).await;
    let mut log = node.log().await;
    let status = log.produce(produce(vec![7; 200_000])).await.unwrap_err();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "OVERLOADED".into()), "{status:?}");
    log.produce(produce(vec![7; 50_000])).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn one_connection_more_than_the_limit_is_refused_with_the_reason() {
    let node = Node::start_with(|config| config.limits.connections_max = 1).await;
    let mut log = node.log().await;
    log.produce(produce("x")).await.unwrap();
    let mut second = LogClient::new(node.endpoint().connect_lazy());
    let status = second.produce(produce("y")).await.unwrap_err();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "TOO_MANY_CONNECTIONS".into()), "{status:?}");
    assert_eq!(value(&status, "limit"), "1");
    log.produce(produce("x")).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn stopping_finishes_what_was_accepted_and_ends_streams_with_unavailable() {
    let node = Node::start().await;
    let mut log = node.log().await;
    log.produce(produce("x")).await.unwrap();
    let mut reading = log.consume_stream(proto::ConsumeStreamRequest::default()).await.unwrap().into_inner();
    assert_eq!(reading.next().await.unwrap().unwrap().records.len(), 1);
    let (sender, requests) = tokio::sync::mpsc::channel(8);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut writing = log.produce_stream(requests).await.unwrap().into_inner();
    sender.send(produce("a")).await.unwrap();
    assert!(matches!(writing.next().await.unwrap().unwrap().result, Some(Answer::Ok(_))));
    node.begin_stop();
    let read = loop {
        if let Err(status) = reading.next().await.unwrap() {
            break status;
        }
    };
    for status in [read, writing.next().await.unwrap().unwrap_err()] {
        assert_eq!(reason(&status), (Code::Unavailable, "UNAVAILABLE".into()), "{status:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn topics_and_servers_are_administered() {
    let node = Node::start().await;
    let channel = node.endpoint().connect().await.unwrap();
    let (mut admin, mut cluster) = (AdminClient::new(channel.clone()), ClusterClient::new(channel));
    let create = proto::CreateTopicRequest { name: "t".into(), partitions: 2, ..Default::default() };
    assert!(admin.create_topic(create.clone()).await.unwrap().into_inner().created);
    let status = admin.create_topic(create.clone()).await.unwrap_err();
    assert_eq!(reason(&status), (Code::AlreadyExists, "TOPIC_EXISTS".into()));
    let again = proto::CreateTopicRequest { if_not_exists: true, ..create };
    assert!(!admin.create_topic(again).await.unwrap().into_inner().created);
    let settings = proto::TopicSettings { retention_ms: Some(5), ..Default::default() };
    let alter = proto::AlterTopicRequest { name: "t".into(), partitions: 3, settings: Some(settings) };
    let altered = admin.alter_topic(alter).await.unwrap().into_inner().topic.unwrap();
    assert_eq!((altered.partitions, altered.settings.unwrap().retention_ms), (3, Some(5)));
    let describe = proto::DescribeTopicRequest { name: "t".into() };
    assert_eq!(admin.describe_topic(describe.clone()).await.unwrap().into_inner().partitions.len(), 3);
    let topics = admin.list_topics(proto::ListTopicsRequest {}).await.unwrap().into_inner().topics;
    assert_eq!(topics.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>(), ["default", "t"]);
    admin.delete_topic(proto::DeleteTopicRequest { name: "t".into() }).await.unwrap();
    let status = admin.describe_topic(describe).await.unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "UNKNOWN_TOPIC".into()));
    let status = admin.delete_topic(proto::DeleteTopicRequest::default()).await.unwrap_err();
    assert_eq!(status.message(), "name: empty: must be the name of a topic");
    let servers = cluster.get_servers(proto::GetServersRequest {}).await.unwrap().into_inner();
    assert_eq!(servers.servers.len(), 1);
    let mut log = node.log().await;
    let offsets = log.list_offsets(proto::ListOffsetsRequest { timestamp_ms: Some(0), ..Default::default() }).await;
    assert_eq!(offsets.unwrap().into_inner(), proto::ListOffsetsResponse::default());
    node.stop().await;
}

#[tokio::test]
async fn health_follows_readiness() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus::{NotServing, Serving};
    let node = Node::start().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(node.endpoint().connect().await.unwrap());
    for service in ["", "chronicle.v1.Log"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), Serving);
    }
    let unknown = health.check(HealthCheckRequest { service: "x".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), Serving);
    node.begin_stop();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), NotServing);
    assert!(watch.next().await.is_none());
    node.stop().await;
}

#[tokio::test]
async fn reflection_lists_every_service_in_both_versions() {
    let node = Node::start().await;
    let channel = node.endpoint().connect().await.unwrap();
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let request = tonic_reflection::pb::$version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(channel.clone());
            let requests = tokio_stream::iter([request]);
            let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
            let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
            let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for services in [services!(v1), services!(v1alpha)] {
        for wanted in ["chronicle.v1.Log", "chronicle.v1.Admin", "chronicle.v1.Cluster", "grpc.health.v1.Health"] {
            assert!(services.iter().any(|service| service == wanted), "{wanted} not in {services:?}");
        }
    }
    node.stop().await;
}
