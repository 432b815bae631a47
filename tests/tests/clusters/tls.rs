//! Secured clusters of real processes: who is let in, who is not, and certificates that change under load.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use chronicle_client::{Client, ClientConfig, TlsConfig};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::{Following, Load, check_read};
use chronicle_tests::node::{PATIENCE, Setup, output};
use chronicle_tests::tls::{self, Authority, Pair, Secured};
use serde_json::Value;

const TOPIC: &str = "secured";

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// Asks a node who is there, in one attempt; answers how that ended.
async fn ask(address: SocketAddr, tls: Option<TlsConfig>) -> Result<(), String> {
    let mut config = ClientConfig::new(address.to_string()).request_timeout(std::time::Duration::from_secs(3));
    if let Some(tls) = tls {
        config = config.tls(tls);
    }
    let client = Client::connect(config).map_err(|error| error.to_string())?;
    client.get_servers().await.map(|_| ()).map_err(|error| error.to_string())
}

/// The value of a metric of a node, by the start of its line; 0 when it is not there.
fn metric(cluster: &Cluster, number: usize, line: &str) -> Result<f64> {
    Ok(blocking(|| cluster.node(number).metric(line))?.unwrap_or(0.0))
}

/// Waits until a counter of node 0 is above a value: a client learns that it is refused before the node has counted it.
async fn counted(cluster: &Cluster, line: &str, before: f64) -> Result<()> {
    let higher = async |cluster: &Cluster| {
        ensure!(metric(cluster, 0, line)? > before, "{line} stays at {before}");
        Ok(())
    };
    cluster.eventually("a higher count", higher).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secured_cluster_serves_grpc_http_and_the_command_line() -> Result<()> {
    let cluster = Cluster::of(3).secured().start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    let writing = Load::new(TOPIC).start(&cluster.servers())?;
    let following = Following::start(&cluster.servers(), TOPIC, 0)?;
    writing.progress(500, PATIENCE).await?;
    let history = writing.stop().await?;
    let read = following.read_to(history.end(0)).await?;
    ensure!(read.len() as i64 == history.end(0), "{} records read", read.len());

    let address = cluster.node(1).address();
    let records = format!("{}/v1/topics/{TOPIC}/partitions/0/records", tls::url(address));
    let http = tls::http(address)?;
    let appended = http.post(&records).body("by HTTP").send().await?;
    ensure!(appended.status() == 200 && appended.version() == reqwest::Version::HTTP_2, "{appended:?}");
    let http1 = reqwest::Client::builder().http1_only();
    let secured = cluster.secured();
    let ca = reqwest::Certificate::from_pem(&std::fs::read(secured.authority.ca())?)?;
    let pair =
        [std::fs::read(secured.client.file("tls.crt"))?, std::fs::read(secured.client.file("tls.key"))?].concat();
    let http1 = http1.add_root_certificate(ca).identity(reqwest::Identity::from_pem(&pair)?).build()?;
    ensure!(http1.get(format!("{records}?offset=0")).send().await?.status() == 200, "HTTP/1.1");

    let mut command = cluster.program(2)?;
    command.args(["cluster", "status", "--output", "json"]);
    let out = blocking(|| output(command))?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let status: Value = serde_json::from_slice(&out.stdout)?;
    let servers = status["servers"].as_array().context("servers")?;
    ensure!(servers.iter().all(|server| server["encryption"] == "tls"), "{status}");
    let serials: std::collections::BTreeSet<&str> =
        servers.iter().filter_map(|server| server["certificate_serial"].as_str()).collect();
    ensure!(serials.len() == 3, "each node has a certificate of its own: {status}");
    for number in 0..3 {
        ensure!(metric(&cluster, number, "chronicle_tls_certificate_not_after_seconds{kind=\"node\"}")? > 1.7e9);
        ensure!(metric(&cluster, number, "chronicle_tls_handshakes_total{outcome=\"ok\"}")? > 0.0);
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_does_not_get_in() -> Result<()> {
    let cluster = Cluster::of(1).secured().start().await?;
    let address = cluster.node(0).address();
    let authority = &cluster.secured().authority;
    let refused = async |what: &str, tls: Option<TlsConfig>, outcome: &str| {
        let line = format!("chronicle_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        let before = metric(&cluster, 0, &line)?;
        ensure!(ask(address, tls).await.is_err(), "{what}: it is let in");
        counted(&cluster, &line, before).await.with_context(|| format!("{what}: not counted as {outcome}"))
    };
    ask(address, Some(cluster.secured().client.client())).await.map_err(anyhow::Error::msg)?;

    refused("plaintext", None, "plaintext").await?;
    refused("no certificate", Some(authority.trusted(None)), "no_certificate").await?;
    let other = Authority::new()?;
    let stranger = other.client("ann", &[])?;
    refused("a certificate of another CA", Some(authority.trusted(Some(&stranger))), "bad_certificate").await?;
    refused("a client that believes another CA", Some(other.trusted(None)), "refused").await?;
    let expired = authority.client("old", &["--valid-from", "2020-01-01T00:00:00Z", "--days", "1"])?;
    refused("an expired certificate", Some(authority.trusted(Some(&expired))), "expired").await?;
    let early = authority.client("new", &["--valid-from", "2200-01-01T00:00:00Z", "--days", "1"])?;
    refused("a certificate that is not valid yet", Some(authority.trusted(Some(&early))), "expired").await?;

    // A ClientHello of TLS 1.1, which offers nothing newer.
    let line = "chronicle_tls_handshakes_total{outcome=\"incompatible\"}";
    let before = metric(&cluster, 0, line)?;
    let answer = blocking(|| -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&hello_of_tls_1_1())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    })?;
    ensure!(answer.first() == Some(&21), "an alert: {answer:?}");
    counted(&cluster, line, before).await.context("TLS 1.1 was not counted")?;
    cluster.finish()
}

/// RFC 4346: record, handshake header, version 3.2, random, no session, two ciphers, no compression.
fn hello_of_tls_1_1() -> Vec<u8> {
    let body = [&[3, 2][..], &[7; 32], &[0], &[0, 4, 0xc0, 0x13, 0, 0x2f], &[1, 0]].concat();
    let handshake = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    [&[22, 3, 1, 0, handshake.len() as u8][..], &handshake].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_plaintext_port_fails_with_the_reason() -> Result<()> {
    let node = blocking(|| Setup::new().start())?;
    let authority = Authority::new()?;
    let error = ask(node.address(), Some(authority.trusted(None))).await.expect_err("it is let in");
    ensure!(error.contains("ProtocolVersion"), "{error}");
    ask(node.address(), None).await.map_err(anyhow::Error::msg)?;
    ensure!(node.log().contains("TLS is off"), "{}", node.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_tls_setting_does_not_start() -> Result<()> {
    let out = blocking(|| Setup::new().set("security.tls.mode", "unset").start_refused())?;
    let error = String::from_utf8_lossy(&out.stderr);
    ensure!(!out.status.success() && error.contains("security.tls.mode: unset: must be"), "{error}");
    Ok(())
}

/// A certificate of the cluster's CA is not enough to be a node: it must be that node's.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_the_certificate_of_another_is_not_admitted() -> Result<()> {
    let mut cluster = Cluster::of(1).secured().start().await?;
    let secured = cluster.secured().clone();
    for (what, pair) in [
        ("another node's", secured.authority.node("node-7", "127.0.0.1", &[])?),
        ("a client's", secured.authority.client("node-1", &[])?),
    ] {
        let mounted = tls::Mounted::new(&pair, &[&secured.authority.ca()])?;
        let setup = cluster.node(0).setup().data_dir(tempfile::tempdir()?.keep());
        let port = chronicle_tests::node::free_port();
        let setup = setup.data_port(port).ops_port(chronicle_tests::node::free_port()).set("node.name", "node-1");
        let setup = setup
            .set("cluster.bootstrap-expect", 2)
            .set("cluster.seeds", serde_json::json!([cluster.node(0).address().to_string()]))
            .set("security.tls.cert-file", serde_json::json!(mounted.file("tls.crt")))
            .set("security.tls.key-file", serde_json::json!(mounted.file("tls.key")));
        let mut impostor = setup.prepare()?;
        impostor.launch()?;
        cluster
            .eventually("the impostor is refused by name", async |cluster| {
                let log = cluster.node(0).log();
                ensure!(log.contains("CERTIFICATE: "), "{what} certificate: {log}");
                Ok(())
            })
            .await?;
        ensure!(cluster.status(0).await?.servers.len() == 1, "{what} certificate: a member");
        std::fs::remove_dir_all(impostor.data_dir())?;
        impostor.kill();
        blocking(|| cluster.node_mut(0).restart())?;
        cluster.settled().await?;
    }
    cluster.finish()
}

/// Every node and the client take these certificates and believe these CAs; waits until every node does.
async fn change(cluster: &Cluster, pairs: &[Pair], client: &Pair, authorities: &[&Path]) -> Result<()> {
    let secured: &Secured = cluster.secured();
    let before = reloads(cluster)?;
    for (number, pair) in pairs.iter().enumerate() {
        let address = cluster.node(number).address();
        secured.node(&format!("node-{number}"), &address.ip().to_string())?.swap(pair, authorities)?;
    }
    secured.client.swap(client, authorities)?;
    cluster
        .eventually("every node has the new certificates", async |cluster| {
            let now = reloads(cluster)?;
            ensure!(now.iter().zip(&before).all(|(now, before)| now > before), "reloads: {before:?}, then {now:?}");
            Ok(())
        })
        .await
}

fn reloads(cluster: &Cluster) -> Result<Vec<f64>> {
    (0..cluster.len()).map(|number| metric(cluster, number, "chronicle_tls_reloads_total")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_ca_is_replaced_under_load_and_no_client_notices() -> Result<()> {
    let mut cluster = Cluster::of(3).secured().start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    let secured = cluster.secured().clone();
    let new = Authority::new()?;
    let (old_ca, new_ca) = (secured.authority.ca(), new.ca());
    let old: Vec<Pair> = (0..3).map(|number| secured.authority.pair(&format!("node-{number}"))).collect();
    let writing = Load::new(TOPIC).start(&cluster.servers())?;
    let following = Following::start(&cluster.servers(), TOPIC, 0)?;
    writing.progress(200, PATIENCE).await?;
    // New connections all the time, of clients that come and go.
    let servers = cluster.servers();
    let fresh = async |rounds: usize| {
        for _ in 0..rounds {
            Client::connect(tls::client_config(&servers))?.get_servers().await?;
        }
        anyhow::Ok(())
    };

    change(&cluster, &old, &secured.authority.pair(tls::ADMIN), &[&old_ca, &new_ca]).await?;
    fresh(20).await?;
    let pairs: Vec<Pair> =
        (0..3).map(|number| new.node(&format!("node-{number}"), "127.0.0.1", &[])).collect::<Result<_>>()?;
    let client = new.client(tls::ADMIN, &[])?;
    change(&cluster, &pairs, &client, &[&old_ca, &new_ca]).await?;
    fresh(20).await?;
    change(&cluster, &pairs, &client, &[&new_ca]).await?;
    fresh(20).await?;
    writing.progress(200, PATIENCE).await?;

    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    let read = following.read_to(history.end(0)).await?;
    let old_client = secured.authority.pair(tls::ADMIN);
    let retired = new.trusted(Some(&old_client));
    ensure!(ask(cluster.node(0).address(), Some(retired)).await.is_err(), "the old CA still counts");
    cluster.settled().await?;
    let stored = cluster.check_disks(TOPIC, &history).await?;
    check_read(&read, &stored[0])?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_that_are_broken_change_nothing_and_raise_an_alert() -> Result<()> {
    let cluster = Cluster::of(1).secured().start().await?;
    let secured = cluster.secured().clone();
    let address = cluster.node(0).address();
    let mounted = secured.node("node-0", "127.0.0.1")?;
    let whole = ["tls.crt", "tls.key", "ca.crt"].map(|name| std::fs::read(mounted.file(name)));
    let [certificate, key, ca] = whole;
    let (certificate, key, ca) = (certificate?, key?, ca?);
    let other = std::fs::read(secured.authority.node("node-9", "127.0.0.1", &[])?.key)?;
    let old = ["--valid-from", "2020-01-01T00:00:00Z", "--days", "1"];
    let expired = secured.authority.node("node-8", "127.0.0.1", &old)?;
    let expired = (std::fs::read(expired.certificate)?, std::fs::read(expired.key)?);
    let mut count = 0.0;
    for (what, (certificate, key, ca)) in [
        ("no certificate", (&b"not PEM"[..], &key[..], &ca[..])),
        ("another certificate's key", (&certificate, &other, &ca)),
        ("no CA", (&certificate, &key, b"")),
        ("an expired certificate", (&expired.0, &expired.1, &ca)),
    ] {
        mounted.put(certificate, key, ca)?;
        count += 1.0;
        cluster
            .eventually("the failure is counted", async |cluster| {
                let failures = metric(cluster, 0, "chronicle_tls_reload_failures_total")?;
                ensure!(failures == count, "{what}: {failures} failures instead of {count}");
                Ok(())
            })
            .await?;
        ask(address, Some(secured.client.client())).await.map_err(anyhow::Error::msg)?;
    }
    let said = cluster.node(0).log().matches("new certificates cannot be used").count();
    ensure!(said == 4, "said {said} times, once for each change");
    ensure!(metric(&cluster, 0, "chronicle_tls_reload_broken")? == 1.0);
    mounted.put(&certificate, &key, &ca)?;
    cluster
        .eventually("all is well again", async |cluster| {
            ensure!(metric(cluster, 0, "chronicle_tls_reload_broken")? == 0.0, "still broken");
            Ok(())
        })
        .await?;
    cluster.finish()
}
