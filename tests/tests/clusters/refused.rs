//! Nodes that do not belong together: each says in its log why, and neither is harmed.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use bytes::Bytes;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::node::{PATIENCE, Setup};
use chronicle_tests::{api, tls};

const TOPIC: &str = "kept";

/// An address is given to a node of another cluster, as happens to addresses of pods.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_at_a_members_address_is_refused_by_both_and_changes_nothing() -> Result<()> {
    let mut cluster = Cluster::of(2).start().await?;
    cluster.create_topic(TOPIC, 1, 2, None).await?;
    let value = Bytes::from_static(b"before");
    let mut log = api::log(cluster.node(cluster.leader(TOPIC, 0).await?).address()).await?;
    api::append(&mut log, TOPIC, value).await?;
    cluster.kill(1);

    let port = cluster.node(1).address().port();
    let setup = cluster.encrypt(Setup::new().data_port(port).set("node.name", "node-1"), "node-1")?;
    let mut stranger = tokio::task::block_in_place(|| setup.start())?;
    cluster
        .eventually("a refusal in both logs", async |cluster| {
            let (member, stranger) = (cluster.node(0).log(), stranger.log());
            ensure!(member.contains("this node is refused") && member.contains("FOREIGN_CLUSTER"), "{member}");
            ensure!(stranger.contains("a node is refused") && stranger.contains("FOREIGN_CLUSTER"), "{stranger}");
            Ok(())
        })
        .await?;
    ensure!(stranger.log().matches("FOREIGN_CLUSTER").count() <= 2, "said again and again: {}", stranger.log());
    let mut other = api::log(stranger.address()).await?;
    ensure!(api::append(&mut other, TOPIC, Bytes::new()).await.is_err(), "the stranger knows the topic");
    stranger.terminate()?;

    cluster.restart(1)?;
    cluster.settled().await?;
    cluster.caught_up(TOPIC).await?;
    let leader = cluster.leader(TOPIC, 0).await?;
    let read = api::read_all(cluster.node(leader).address(), TOPIC, 1 << 20).await?;
    ensure!(read.len() == 1 && read[0].value.as_deref() == Some(b"before"), "{read:?}");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_protocol_version_is_refused_and_does_no_harm() -> Result<()> {
    if tls::by_default() {
        // What is said here in plaintext does not get as far as to be read: `tls` has that.
        return Ok(());
    }
    let cluster = Cluster::of(1).start().await?;
    let address = cluster.node(0).address();
    tokio::task::block_in_place(|| -> Result<()> {
        for preface in
            ["CHRONICLE PEER 2", "CHRONICLE BEAT 2", "CHRONICLE PEER 2", "CHRONICLE \u{7f}\u{1}\u{2}\u{3}\u{4}"]
        {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(format!("{preface}\r\n\r\n\r\n\r\n").as_bytes())?;
            // It is closed soon, whatever it says or does not say.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
        Ok(())
    })?;
    let log = cluster.node(0).log();
    ensure!(log.contains("PROTOCOL") && log.contains("CHRONICLE PEER 2"), "{log}");
    ensure!(log.matches("CHRONICLE PEER 2").count() == 1, "said again: {log}");
    let mut client = api::log(address).await?;
    cluster.create_topic(TOPIC, 1, 1, None).await?;
    api::append(&mut client, TOPIC, Bytes::from_static(b"still there")).await?;
    cluster.finish()
}
