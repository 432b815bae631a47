//! Any node answers clients that cannot follow a leader: HTTP behind one address, and groups whose coordinator does not hold
//! what they read.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use chronicle_proto::v1;
use chronicle_proto::v1::groups_client::GroupsClient;
use chronicle_tests::api;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::tls;
use serde_json::{Value, json};

const TOPIC: &str = "anywhere";

struct Http {
    client: reqwest::Client,
    base: String,
}

impl Http {
    fn new(address: SocketAddr, topic: &str) -> Self {
        let client = tls::http(address).expect("certificates of the test");
        Self { client, base: format!("{}/v1/topics/{topic}/partitions/0", tls::url(address)) }
    }

    async fn post(&self, query: &str, value: &str) -> Result<(u16, Value)> {
        let answer = self.client.post(format!("{}/records?{query}", self.base)).body(value.to_owned()).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    async fn get(&self, path: &str) -> Result<(u16, Value)> {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }
}

fn ok(answer: (u16, Value)) -> Result<Value> {
    ensure!(answer.0 == 200, "{}: {}", answer.0, answer.1);
    Ok(answer.1)
}

/// Every node takes appends, and what any of them has acknowledged every one of them serves at once.
async fn every_node_serves(replicas: i32) -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 1, replicas, None).await?;
    cluster.leader(TOPIC, 0).await?;
    let nodes: Vec<Http> = (0..3).map(|number| Http::new(cluster.node(number).address(), TOPIC)).collect();
    for round in 0..30 {
        let appended = ok(nodes[round % 3].post("", &format!("value {round}")).await?)?;
        ensure!(appended["offset"] == round, "{appended}");
        for node in &nodes {
            let read = ok(node.get(&format!("/records?offset={round}")).await?)?;
            ensure!(read["records"][0]["value"] == api_text(&format!("value {round}")), "round {round}: {read}");
            let offsets = ok(node.get("/offsets").await?)?;
            ensure!(offsets["next"] == round + 1, "round {round}: {offsets}");
        }
    }
    for node in &nodes {
        // What comes back is the broker's answer, whoever gave it.
        let (status, problem) = node.post("expected_next_offset=7", "late").await?;
        ensure!((status, &problem["reason"]) == (409, &json!("VERSION_CONFLICT")), "{problem}");
        ensure!(problem["current"] == 30, "{problem}");
        let (status, problem) = node.get("/records?offset=30").await?;
        ensure!((status, &problem["reason"]) == (404, &json!("OFFSET_OUT_OF_RANGE")), "{problem}");
        ensure!(problem["next"] == 30, "{problem}");
        let waited = ok(node.get("/records?offset=30&wait_ms=200").await?)?;
        ensure!(waited["records"] == json!([]) && waited["next_offset"] == 30, "{waited}");
    }
    // An idempotent producer may come by another node the second time.
    let producers = format!("{}/v1/producers", tls::url(cluster.node(0).address()));
    let producer: Value = nodes[0].client.post(producers).send().await?.json().await?;
    let identity = format!("producer_id={}&producer_epoch=0&producer_sequence=0", producer["id"]);
    let first = ok(nodes[0].post(&identity, "once").await?)?;
    for node in &nodes[1..] {
        let again = ok(node.post(&identity, "once").await?)?;
        ensure!(again["offset"] == first["offset"] && again["duplicate"] == true, "{first} {again}");
    }
    cluster.finish()
}

fn api_text(text: &str) -> Value {
    use base64::Engine;
    json!(base64::engine::general_purpose::STANDARD.encode(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_takes_http_appends_and_serves_what_any_has_acknowledged() -> Result<()> {
    every_node_serves(3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_replica_serve_http_as_well() -> Result<()> {
    every_node_serves(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_that_answers_an_append_is_refused_and_does_not_hang() -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 1, 1, None).await?;
    let leader = cluster.leader(TOPIC, 0).await?;
    let other = (leader + 1) % 3;
    let node = Http::new(cluster.node(other).address(), TOPIC);
    ok(node.post("", "before").await?)?;
    cluster.kill(leader);
    cluster
        .eventually("a refusal that says that nothing happened", async |_| {
            let (status, problem) = node.post("", "while nobody leads").await?;
            ensure!(status == 503, "{status}: {problem}");
            let reason = problem["reason"].as_str().context("no reason")?;
            ensure!(["NOT_LEADER", "UNAVAILABLE"].contains(&reason), "{problem}");
            Ok(())
        })
        .await?;
    cluster.restart(leader)?;
    cluster.eventually("appends go on", async |_| ok(node.post("", "after").await?)).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_right_whichever_node_coordinates_the_group() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 1, 1, None).await?;
    let leader = cluster.leader(TOPIC, 0).await?;
    let log = api::log(cluster.node(leader).address()).await?;
    let long_ago = 1_700_000_000_000;
    for value in 0..10 {
        let record = v1::Record { value: Some(vec![value].into()), timestamp_ms: Some(long_ago), ..Default::default() };
        let request =
            v1::ProduceRequest { partition: api::partition(TOPIC), records: vec![record], ..Default::default() };
        log.clone().produce(request).await?;
    }
    let mut coordinators = std::collections::BTreeSet::new();
    for number in 0..40 {
        let group = format!("group-{number}");
        let coordinator = cluster
            .eventually("a coordinator", async |cluster| {
                let mut last = None;
                // Who is asked first for a partition that sleeps is likely to lead it: not always the topic's leader.
                for node in [1, 2, 0].map(|step| (leader + step) % 3) {
                    let mut groups = GroupsClient::new(api::connect(cluster.node(node).address()).await?);
                    let offset = v1::GroupOffset { topic: TOPIC.into(), offset: 4, ..Default::default() };
                    let commit =
                        v1::CommitOffsetsRequest { group: group.clone(), offsets: vec![offset], ..Default::default() };
                    match groups.commit_offsets(commit).await {
                        Ok(_) => return Ok(node),
                        Err(status) => last = Some(status),
                    }
                }
                bail!("{last:?}")
            })
            .await?;
        coordinators.insert(coordinator);
        let mut groups = GroupsClient::new(api::connect(cluster.node(coordinator).address()).await?);
        let described = groups.describe_group(v1::DescribeGroupRequest { group }).await?.into_inner();
        let lag = described.partitions.first().context("no partition")?;
        ensure!((lag.offset, lag.end, lag.lag_records) == (4, 10, 6), "coordinator {coordinator}: {lag:?}");
        ensure!(lag.lag_ms > 0, "coordinator {coordinator}: {lag:?}");
        if coordinators.len() == 3 {
            break;
        }
    }
    ensure!(coordinators.iter().any(|node| *node != leader), "only the leader coordinates: {coordinators:?}");
    cluster.finish()
}
