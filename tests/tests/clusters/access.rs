//! Authorisation in secured clusters of real processes: rules reach every node, and a request is judged where it comes in.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronicle_client::{Client, ClientConfig};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::node::output;
use chronicle_tests::tls;
use reqwest::Certificate;
use serde_json::{Value, json};

const TOPIC: &str = "guarded";
const PRINCIPAL: &str = "shop";

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// Runs `chronicle` as the super user against a node; answers what it printed.
fn chronicle(cluster: &Cluster, number: usize, arguments: &[&str]) -> Result<Value> {
    let mut command = cluster.program(number)?;
    command.args(arguments).args(["--output", "json"]);
    let out = blocking(|| output(command))?;
    ensure!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

async fn guarded() -> Result<Cluster> {
    let cluster = Cluster::of(3).secured();
    let cluster = cluster
        .set("security.authorization.enabled", true)
        .set("security.authorization.super-users", json!([tls::ADMIN]))
        .start()
        .await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    cluster.leader(TOPIC, 0).await?;
    Ok(cluster)
}

/// An HTTP client that shows a certificate of the cluster's authority.
fn http(cluster: &Cluster, name: &str) -> Result<reqwest::Client> {
    let pair = cluster.secured().authority.client(name, &[])?;
    let identity = [std::fs::read(pair.certificate)?, std::fs::read(pair.key)?].concat();
    let ca = Certificate::from_pem(&std::fs::read(cluster.secured().authority.ca())?)?;
    let client = reqwest::Client::builder().add_root_certificate(ca).identity(reqwest::Identity::from_pem(&identity)?);
    Ok(client.build()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_is_in_effect_on_every_node_within_a_second_and_checked_where_the_request_arrives() -> Result<()> {
    let cluster = guarded().await?;
    let client = blocking(|| http(&cluster, PRINCIPAL))?;
    let append = async |number: usize| -> Result<u16> {
        let url = format!("{}/v1/topics/{TOPIC}/partitions/0/records", tls::url(cluster.node(number).address()));
        Ok(client.post(url).body("v").send().await?.status().as_u16())
    };
    for number in 0..3 {
        ensure!(append(number).await? == 404, "node {number}: nobody has allowed it yet");
    }
    let rule = ["acl", "add", "--principal", PRINCIPAL, "--topic", "guard*", "-p", "write"];
    let added = chronicle(&cluster, 0, &rule)?;
    ensure!(added[0]["pattern"] == "prefix" && added[0]["name"] == "guard", "{added}");
    let began = Instant::now();
    for number in 0..3 {
        // Two of these forward to the leader.
        while append(number).await? != 200 {
            ensure!(began.elapsed() < Duration::from_secs(1), "node {number}: not in force within a second");
        }
    }
    let url = format!("{}/v1/topics/{TOPIC}/partitions/0/records", tls::url(cluster.node(1).address()));
    let read = client.get(url).send().await?;
    ensure!(read.status() == 403, "who may write may describe, and so hears that reading is forbidden: {read:?}");
    let removed = chronicle(&cluster, 2, &["acl", "remove", "--principal", PRINCIPAL])?;
    ensure!(removed == added, "{removed}");
    let began = Instant::now();
    for number in 0..3 {
        while append(number).await? != 404 {
            ensure!(began.elapsed() < Duration::from_secs(1), "node {number}: still in force after a second");
        }
    }
    ensure!(chronicle(&cluster, 1, &["acl", "list"])? == json!([]), "a rule is left");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_outlive_the_nodes_and_administration_is_for_who_may() -> Result<()> {
    let mut cluster = guarded().await?;
    chronicle(&cluster, 1, &["acl", "add", "--principal", PRINCIPAL, "--topic", TOPIC, "-p", "write,read"])?;
    chronicle(&cluster, 1, &["quota", "set", "--default", "--requests", "500"])?;
    cluster.kill_all();
    cluster.start_all()?;
    ensure!(chronicle(&cluster, 2, &["acl", "list"])?.as_array().is_some_and(|rules| rules.len() == 2), "rules");
    let quotas = chronicle(&cluster, 0, &["quota", "list"])?;
    ensure!(quotas[0]["requests"] == 500 && quotas[0]["principal"].is_null(), "{quotas}");

    let pair = blocking(|| cluster.secured().authority.client(PRINCIPAL, &[]))?;
    let config = ClientConfig::new(cluster.servers()).tls(cluster.secured().authority.trusted(Some(&pair)));
    let client = Client::connect(config)?;
    let denied = client.cluster_status().await.err().context("it may see the status of the cluster")?;
    ensure!(denied.to_string().contains("PERMISSION_DENIED"), "{denied}");
    let denied = client.delete_acls(vec![chronicle_client::v1::AclFilter::default()]).await;
    ensure!(denied.is_err(), "it may take rules away");
    let topics = client.list_topics().await?;
    ensure!(topics.len() == 1 && topics[0].name == TOPIC, "{topics:?}");
    cluster.finish()
}
