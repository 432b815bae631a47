//! The ops port over real sockets.

use std::net::SocketAddr;

use crate::serving::Node;
use chronicle_node::listeners::{OpsServer, Probe};
use chronicle_node::telemetry::Metrics;
use reqwest::Client;
use tokio_util::sync::CancellationToken;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn get(http: &Client, address: SocketAddr, path: &str) -> (u16, String) {
    let response = http.get(format!("http://{address}{path}")).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn liveness_does_not_wait_for_the_broker_and_readiness_follows_it() {
    let probe = Probe::new();
    let metrics = Metrics::new();
    let server = OpsServer::bind(ANY, probe.clone(), metrics.clone()).await.unwrap();
    let (address, shutdown) = (server.local_addr(), CancellationToken::new());
    let serving = tokio::spawn(server.serve(shutdown.clone()));
    let http = Client::new();
    assert_eq!(get(&http, address, "/livez").await, (200, "alive\n".into()));
    let (status, why) = get(&http, address, "/readyz").await;
    assert_eq!((status, why.as_str()), (503, "not ready: starting: recovering the data directory\n"));
    let node = Node::start().await;
    probe.attach(node.broker.clone());
    assert_eq!(get(&http, address, "/readyz").await, (200, "ready\n".into()));
    node.stop().await;
    let (status, why) = get(&http, address, "/readyz").await;
    assert_eq!(status, 503, "{why}");
    assert_eq!(get(&http, address, "/livez").await.0, 200);
    shutdown.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn metrics_are_served_as_text_and_nothing_else_is() {
    let node = Node::start().await;
    let probe = Probe::new();
    probe.attach(node.broker.clone());
    chronicle_node::runtime::collect_node(&node.metrics, &node.core);
    let server = OpsServer::bind(ANY, probe, node.metrics.clone()).await.unwrap();
    let (address, shutdown) = (server.local_addr(), CancellationToken::new());
    let serving = tokio::spawn(server.serve(shutdown.clone()));
    let http = Client::new();
    http.post(node.url("/")).body("abc").send().await.unwrap();
    let response = http.get(format!("http://{address}/metrics")).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = response.text().await.unwrap();
    for line in [
        r#"chronicle_requests_total{listener="http",operation="produce",outcome="OK"} 1"#,
        "chronicle_received_bytes_total{listener=\"http\"} 3",
        "chronicle_records_appended_total{listener=\"http\"} 1",
        "chronicle_connections_open 1",
        "chronicle_topics 1.0",
        "# TYPE chronicle_log_flush_seconds histogram",
        r#"chronicle_log_flush_seconds_bucket{le="2.0"} "#,
        r#"chronicle_log_flush_seconds_bucket{le="+Inf"} "#,
        "# EOF",
    ] {
        assert!(
            text.lines().any(|l| l == line || (line.ends_with("} ") && l.starts_with(line))),
            "{line} not in\n{text}"
        );
    }
    for path in ["/", "/metrics/x", "/v1/topics"] {
        assert_eq!(get(&http, address, path).await.0, 404, "{path}");
    }
    let posted = http.post(format!("http://{address}/livez")).send().await.unwrap();
    assert_eq!((posted.status().as_u16(), posted.headers()["allow"].to_str().unwrap()), (405, "GET, HEAD"));
    shutdown.cancel();
    serving.await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_taken_ops_port_is_named() {
    let first = OpsServer::bind(ANY, Probe::new(), Metrics::new()).await.unwrap();
    let taken = first.local_addr();
    let error = OpsServer::bind(taken, Probe::new(), Metrics::new()).await.err().unwrap();
    assert!(error.to_string().starts_with(&format!("listeners.ops: {taken}: cannot listen: ")), "{error}");
}
