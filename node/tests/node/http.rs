//! The HTTP/JSON listener over real sockets.

use crate::serving::Node;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

/// Status and document of an answer.
async fn answer(request: RequestBuilder) -> (u16, Value) {
    document(request.send().await.unwrap()).await
}

async fn document(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert_eq!(kind, if status < 400 { "application/json" } else { "application/problem+json" });
    (status, response.json().await.unwrap())
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

const RECORDS: &str = "/v1/topics/default/partitions/0/records";

#[tokio::test]
async fn a_json_record_is_appended_and_read_back_with_everything() {
    let node = Node::start().await;
    let http = Client::new();
    let record = json!({"value": base64("hello"), "key": base64("k"), "headers": {"a": "x", "b": [null, {"base64": "/w=="}]},
        "timestamp": 1700000000000i64});
    let appended = answer(http.post(node.url("/")).json(&json!({"record": record}))).await;
    assert_eq!(appended, (200, json!({"offset": 0})));
    let (status, read) = answer(http.get(node.url("/?offset=0"))).await;
    let mut expected = record.clone();
    expected["offset"] = json!(0);
    assert_eq!((status, read), (200, json!({"record": expected})));
    let raw = http.get(node.url("/?offset=0")).header("accept", "application/octet-stream").send().await.unwrap();
    assert_eq!(raw.headers()["content-type"], "application/octet-stream");
    assert_eq!(raw.headers()["chronicle-key"], base64("k"));
    assert_eq!(raw.headers()["chronicle-timestamp"], "1700000000000");
    assert_eq!(raw.headers()["chronicle-headers"], r#"{"a":"x","b":[null,{"base64":"/w=="}]}"#);
    assert_eq!(raw.bytes().await.unwrap(), "hello");
    node.stop().await;
}

#[tokio::test]
async fn any_other_body_is_the_value_and_many_records_are_appended_at_once() {
    let node = Node::start().await;
    let http = Client::new();
    let raw = http.post(node.url("/")).header("chronicle-key", base64("k")).body(vec![0u8, 255, 7]);
    assert_eq!(answer(raw).await, (200, json!({"offset": 0})));
    let many = json!({"records": [{"value": {"text": "a"}}, {"value": null}, {"value": ""}], "compression": "zstd"});
    assert_eq!(answer(http.post(node.url(RECORDS)).json(&many)).await, (200, json!({"offset": 1, "count": 3})));
    let (_, read) = answer(http.get(node.url(&format!("{RECORDS}?offset=0&max_records=3")))).await;
    assert_eq!(
        (&read["next_offset"], &read["high_watermark"], &read["log_start_offset"]),
        (&json!(3), &json!(4), &json!(0))
    );
    let values: Vec<_> = read["records"].as_array().unwrap().iter().map(|record| &record["value"]).collect();
    assert_eq!(values, [&json!(base64([0u8, 255, 7])), &json!(base64("a")), &Value::Null]);
    assert_eq!(read["records"][0]["key"], base64("k"));
    node.stop().await;
}

#[tokio::test]
async fn a_repeated_idempotent_append_is_stored_once_and_expectations_are_checked() {
    let node = Node::start().await;
    let http = Client::new();
    let (_, mut producer) = answer(http.post(node.url("/v1/producers"))).await;
    producer["sequence"] = json!(0);
    let body = json!({"record": {"value": "", "key": base64("k")}, "producer": producer, "expected_next_offset": 0});
    assert_eq!(answer(http.post(node.url("/")).json(&body)).await, (200, json!({"offset": 0})));
    assert_eq!(answer(http.post(node.url("/")).json(&body)).await, (200, json!({"offset": 0, "duplicate": true})));
    let (status, problem) = answer(http.post(node.url("/?expected_next_offset=5")).body("x")).await;
    assert_eq!((status, &problem["reason"], &problem["current"]), (409, &json!("VERSION_CONFLICT"), &json!(1)));
    let keyed = |version: i64| {
        let url = node.url(&format!("/?expected_key_version={version}"));
        http.post(url).header("chronicle-key", base64("k")).body("x")
    };
    let (status, problem) = answer(keyed(-1)).await;
    assert_eq!((status, &problem["current"]), (409, &json!(0)));
    assert_eq!(answer(keyed(0)).await, (200, json!({"offset": 1})));
    node.stop().await;
}

#[tokio::test]
async fn past_the_end_is_404_with_the_valid_range() {
    let node = Node::start().await;
    let http = Client::new();
    answer(http.post(node.url("/")).body("x")).await;
    for path in ["/?offset=1", "/?offset=1&wait_ms=20", "/?offset=99", &format!("{RECORDS}?offset=1")] {
        let (status, problem) = answer(http.get(node.url(path))).await;
        assert_eq!(status, 404, "{path}");
        assert_eq!(problem["type"], "https://chronicle.dev/errors/OFFSET_OUT_OF_RANGE");
        assert_eq!((&problem["earliest"], &problem["next"]), (&json!(0), &json!(1)));
    }
    let (status, read) = answer(http.get(node.url(&format!("{RECORDS}?offset=1&wait_ms=20")))).await;
    assert_eq!((status, &read["records"], &read["next_offset"]), (200, &json!([]), &json!(1)));
    node.stop().await;
}

#[tokio::test]
async fn a_long_poll_is_answered_when_a_record_comes() {
    let node = Node::start().await;
    let http = Client::new();
    let one = tokio::spawn(answer(http.get(node.url("/?offset=0&wait_ms=30000"))));
    let many = tokio::spawn(answer(http.get(node.url(&format!("{RECORDS}?from=latest&wait_ms=30000")))));
    node.reaches("chronicle_connections_open", 2.0).await;
    // The polls may not have reached the broker yet; then they find the record at once, unless they start at `latest`.
    while !many.is_finished() {
        answer(http.post(node.url("/")).body("x")).await;
    }
    assert_eq!(one.await.unwrap().1["record"]["value"], base64("x"));
    assert_eq!(many.await.unwrap().1["records"][0]["value"], base64("x"));
    node.stop().await;
}

#[tokio::test]
async fn bad_input_is_refused_by_name_and_does_no_harm() {
    let node = Node::start_with(|config| config.limits.request_bytes_max = 2 << 20).await;
    let http = Client::new();
    answer(http.post(node.url("/")).body("first")).await;
    let json = |body: &str| http.post(node.url("/")).header("content-type", "application/json").body(body.to_owned());
    let large = |bytes: usize| http.post(node.url("/")).body(vec![7; bytes]);
    let latin = http.post(node.url("/")).header("content-type", "application/json; charset=latin1").body("{}");
    for (request, status, reason, part) in [
        (json("{"), 400, "MALFORMED_BODY", "line 1 column 1"),
        (json(r#"{"record": {"value": "", "x": 1}}"#), 400, "MALFORMED_BODY", "unknown field `x`"),
        (json(r#"{"record": {"value": "%%%"}}"#), 400, "INVALID_BASE64", "record.value: is not base64"),
        (json("{}"), 400, "INVALID_REQUEST", "record: missing"),
        (latin, 415, "UNSUPPORTED_MEDIA_TYPE", "must be UTF-8"),
        (http.post(node.url("/v1/topics")).body("x"), 415, "UNSUPPORTED_MEDIA_TYPE", "must be application/json"),
        (large((1 << 20) + 4096), 413, "RECORD_TOO_LARGE", "max_message_bytes"),
        (large((2 << 20) + 1), 413, "RECORD_TOO_LARGE", "limits.request-bytes-max"),
        (http.post(node.url("/v1/topics/none/partitions/0/records")).body(""), 404, "UNKNOWN_TOPIC", "none"),
        (http.post(node.url("/v1/topics/default/partitions/9/records")).body(""), 404, "UNKNOWN_PARTITION", "9"),
        (
            http.post(node.url("/v1/topics/default/partitions/x/records")).body(""),
            400,
            "INVALID_REQUEST",
            "partition: x",
        ),
        (http.get(node.url("/?offset=-1")), 400, "INVALID_REQUEST", "offset: -1: must be a whole number"),
        (http.get(node.url("/?ofset=1")), 400, "INVALID_REQUEST", "query: ofset: must be one of offset"),
        (http.get(node.url("/v2")), 404, "NO_SUCH_ENDPOINT", "path: /v2"),
        (http.put(node.url("/")), 405, "NO_SUCH_ENDPOINT", "method: PUT"),
        (
            http.get(node.url("/?offset=0")).header("accept", "image/png"),
            406,
            "UNSUPPORTED_MEDIA_TYPE",
            "accept: image/png",
        ),
        (http.get(node.url("/v1/topics/%ff")), 400, "INVALID_REQUEST", "path: undecodable"),
        (
            http.post(node.url("/")).header("content-type", "application/grpc").body(""),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            "gRPC needs HTTP/2",
        ),
    ] {
        let (got, problem) = answer(request).await;
        assert_eq!((got, problem["reason"].as_str().unwrap()), (status, reason), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
        assert_eq!(problem["status"], status);
    }
    let allow = http.put(node.url("/")).send().await.unwrap();
    assert_eq!(allow.headers()["allow"], "GET,HEAD,POST");
    let (_, read) = answer(http.get(node.url(RECORDS))).await;
    assert_eq!((&read["records"][0]["value"], &read["next_offset"]), (&json!(base64("first")), &json!(1)));
    node.stop().await;
}

#[tokio::test]
async fn topics_are_created_listed_described_changed_and_deleted() {
    let node = Node::start().await;
    let http = Client::new();
    let create = || http.post(node.url("/v1/topics"));
    let body = json!({"name": "events", "partitions": 3, "settings": {"retention_ms": 60000, "durability": "memory"}});
    let (status, created) = answer(create().json(&body)).await;
    assert_eq!((status, &created["created"]), (201, &json!(true)));
    assert_eq!(created["topic"]["settings"]["durability"], "memory");
    let (status, problem) = answer(create().json(&body)).await;
    assert_eq!((status, &problem["reason"]), (409, &json!("TOPIC_EXISTS")));
    let again = json!({"name": "events", "partitions": 3, "if_not_exists": true});
    assert_eq!(answer(create().json(&again)).await.0, 200);
    let (_, list) = answer(http.get(node.url("/v1/topics"))).await;
    let names: Vec<_> =
        list["topics"].as_array().unwrap().iter().map(|topic| topic["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "events"]);
    let alter = http.patch(node.url("/v1/topics/events")).json(&json!({"settings": {"retention_ms": -1}}));
    assert_eq!(answer(alter).await.1["topic"]["settings"]["retention_ms"], -1);
    let (_, described) = answer(http.get(node.url("/v1/topics/events"))).await;
    assert_eq!(described["partitions"].as_array().unwrap().len(), 3);
    assert_eq!(http.delete(node.url("/v1/topics/events")).send().await.unwrap().status(), 204);
    assert_eq!(answer(http.get(node.url("/v1/topics/events"))).await.0, 404);
    let (_, servers) = answer(http.get(node.url("/v1/servers"))).await;
    assert_eq!(servers["servers"].as_array().unwrap().len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn offsets_are_answered_also_by_time() {
    let node = Node::start().await;
    let http = Client::new();
    for time in [1000, 2000] {
        answer(http.post(node.url("/")).header("chronicle-timestamp", time).body("x")).await;
    }
    let at = |query: &str| answer(http.get(node.url(&format!("/v1/topics/default/partitions/0/offsets{query}"))));
    assert_eq!(at("").await, (200, json!({"earliest": 0, "next": 2})));
    assert_eq!(at("?timestamp=1500").await.1["at_timestamp"], json!({"offset": 1, "timestamp": 2000}));
    assert_eq!(at("?timestamp=2500").await.1["at_timestamp"], Value::Null);
    let (_, read) = answer(http.get(node.url(&format!("{RECORDS}?timestamp=1500")))).await;
    assert_eq!(read["records"][0]["offset"], 1);
    node.stop().await;
}

#[tokio::test]
async fn the_service_and_its_interface_describe_themselves_over_http_2_as_well() {
    let node = Node::start().await;
    for http in [Client::new(), Client::builder().http2_prior_knowledge().build().unwrap()] {
        let (_, service) = answer(http.get(node.url("/")).header("accept", "text/html,*/*;q=0.8")).await;
        assert_eq!((&service["service"], &service["links"]["api"]), (&json!("chronicle"), &json!("/openapi.json")));
        let (_, api) = answer(http.get(node.url("/openapi.json"))).await;
        assert_eq!((&api["openapi"], &api["info"]["version"]), (&json!("3.1.0"), &json!(env!("CARGO_PKG_VERSION"))));
        assert_eq!(answer(http.post(node.url("/")).body("x")).await.0, 200);
    }
    node.stop().await;
}

#[tokio::test]
async fn one_connection_more_than_the_limit_is_refused_and_the_others_continue() {
    let node = Node::start_with(|config| config.limits.connections_max = 1).await;
    let (first, second) = (Client::new(), Client::new());
    assert_eq!(answer(first.post(node.url("/")).body("x")).await.0, 200);
    let refused = second.get(node.url("/?offset=0")).send().await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, problem) = document(refused).await;
    assert_eq!((status, &problem["reason"], &problem["limit"]), (503, &json!("TOO_MANY_CONNECTIONS"), &json!(1)));
    assert_eq!(answer(first.get(node.url("/?offset=0"))).await.0, 200);
    assert_eq!(node.metric(r#"chronicle_connections_refused_total{cause="connection_limit"}"#), 1.0);
    drop(first);
    while answer(second.get(node.url("/?offset=0"))).await.0 != 200 {}
    node.stop().await;
}

#[tokio::test]
async fn requests_over_the_byte_budget_are_rejected_as_overloaded() {
    let node = Node::start_with(|config| config.limits.in_flight_bytes_max = 100_000).await;
    let http = Client::new();
    let (status, problem) = answer(http.post(node.url("/")).body(vec![7; 200_000])).await;
    assert_eq!((status, &problem["reason"], &problem["limit"]), (429, &json!("OVERLOADED"), &json!(100_000)));
    assert_eq!(answer(http.post(node.url("/")).body(vec![7; 50_000])).await.0, 200);
    assert_eq!(answer(http.get(node.url("/?offset=0"))).await.0, 200);
    drop(http);
    node.reaches("chronicle_connections_accepted_total", 1.0).await;
    assert_eq!(node.metric("chronicle_in_flight_bytes"), 0.0);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_header_is_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Node::start_with(|config| {
        config.limits.header_timeout_ms = 100;
        config.limits.body_timeout_ms = 100;
    })
    .await;
    for begin in ["", "P", "POST / HTTP/1.1\r\nhost: x\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut socket = chronicle_node::host::net::connect(node.address).await.unwrap();
        socket.write_all(begin.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // Ends only when the node closes.
        let _ = socket.read_to_end(&mut rest).await;
    }
    let mut socket = chronicle_node::host::net::connect(node.address).await.unwrap();
    socket.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab").await.unwrap();
    let mut rest = vec![0; 4096];
    let n = socket.read(&mut rest).await.unwrap();
    let text = String::from_utf8_lossy(&rest[..n]);
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("limits.body-timeout-ms"), "{text}");
    drop(socket);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_of_its_response_is_closed_and_its_memory_released() {
    use tokio::io::AsyncWriteExt;
    let node = Node::start_with(|config| {
        config.limits.slow_reader_ms = 100;
        // One answer alone is more than any operating system buffers for a socket that nobody reads.
        config.limits.fetch_bytes_max = 32 << 20;
    })
    .await;
    let http = Client::new();
    for _ in 0..20 {
        assert_eq!(answer(http.post(node.url("/")).body(vec![7; 1 << 20])).await.0, 200);
    }
    drop(http);
    let mut socket = chronicle_node::host::net::connect(node.address).await.unwrap();
    let request = format!("GET {RECORDS}?max_bytes=33554432 HTTP/1.1\r\nhost: x\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    node.reaches("chronicle_slow_readers_total", 1.0).await;
    let freed = async {
        while node.metric("chronicle_connections_open") > 0.0 || node.metric("chronicle_in_flight_bytes") > 0.0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), freed).await.unwrap();
    drop(socket);
    node.stop().await;
}

#[tokio::test]
async fn stopping_ends_long_polls_and_idle_connections() {
    let node = Node::start().await;
    let http = Client::new();
    answer(http.post(node.url("/")).body("x")).await;
    let poll = tokio::spawn(answer(Client::new().get(node.url("/?offset=1&wait_ms=60000"))));
    node.reaches("chronicle_connections_open", 2.0).await;
    node.begin_stop();
    // Refused when the request came before the stop, broken off when its connection had sent nothing yet.
    if let Ok((status, problem)) = poll.await {
        assert_eq!((status, &problem["reason"]), (503, &json!("UNAVAILABLE")));
    }
    node.stop().await;
    drop(http);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let node = Node::start().await;
    let taken = node.address;
    let directory = tempfile::tempdir().unwrap();
    let mut config = chronicle_node::config::Config::default();
    config.node.data_dir = directory.path().join("data");
    config.listeners.data = taken;
    let core = chronicle_node::runtime::Node::start(std::sync::Arc::new(config)).await.unwrap();
    let services = core.services(Default::default());
    let groups = services.groups.clone();
    let error = chronicle_node::listeners::Server::bind(services).await.err().unwrap();
    assert!(error.to_string().starts_with(&format!("listeners.data: {taken}: cannot listen: ")), "{error}");
    groups.shutdown().await;
    core.shutdown().await;
    node.stop().await;
}
