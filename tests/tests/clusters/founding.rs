//! How nodes come together: in every order one cluster and never two, and who does not belong is refused and told why.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1;
use chronicle_tests::api;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::node::{Node, Setup, free_port, get};
use serde_json::json;

fn addresses(clusters: &[&Cluster]) -> serde_json::Value {
    let all = clusters.iter().flat_map(|cluster| (0..cluster.len()).map(|number| cluster.node(number).address()));
    json!(all.map(|address| address.to_string()).collect::<Vec<_>>())
}

/// A node that must end by itself, with failure and one last line that says all of `words` (in any case).
fn refused((status, log): &(ExitStatus, String), words: &[&str]) -> Result<()> {
    ensure!(!status.success(), "ended with {status}:\n{log}");
    ensure!(!log.contains("panicked"), "the node panicked:\n{log}");
    let last = log.lines().last().unwrap_or_default().to_lowercase();
    for word in words {
        ensure!(last.contains(&word.to_lowercase()), "the last line does not say `{word}`:\n{log}");
    }
    Ok(())
}

fn launch_and_wait_ended(node: &mut Node) -> Result<(ExitStatus, String)> {
    tokio::task::block_in_place(|| {
        node.launch()?;
        node.wait_ended()
    })
}

async fn cluster_id(cluster: &Cluster, number: usize) -> Result<String> {
    Ok(cluster.status(number).await?.cluster_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_one_cluster_in_every_order_and_stay_it() -> Result<()> {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        // At once, and each after the one before has been looking around for a while.
        for stagger in [Duration::ZERO, Duration::from_millis(300)] {
            let mut cluster = Cluster::of(3).prepare()?;
            for number in order {
                cluster.node_mut(number).launch()?;
                tokio::time::sleep(stagger).await;
            }
            cluster.wait_ready(&order).with_context(|| format!("{order:?}, {stagger:?}"))?;
            cluster.settled().await.with_context(|| format!("{order:?}, {stagger:?}"))?;
            if order == [2, 1, 0] {
                let id = cluster_id(&cluster, 0).await?;
                cluster.kill_all();
                cluster.start_all()?;
                cluster.settled().await?;
                ensure!(cluster_id(&cluster, 2).await? == id, "a restart made another cluster");
            }
            cluster.finish()?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_do_not_bootstrap_a_cluster_and_stop_cleanly() -> Result<()> {
    let mut cluster = Cluster::of(3).prepare()?;
    cluster.node_mut(0).launch()?;
    cluster.node_mut(1).launch()?;
    let ops = cluster.node(0).ops_address();
    // The seed that is missing is nobody's fault yet: the node says what it waits for, and goes on looking.
    cluster
        .eventually("a node that says that it is not ready", async |_| {
            let (status, body) = tokio::task::block_in_place(|| get(ops, "/readyz"))?;
            ensure!(status == 503 && !body.trim().is_empty(), "{status}: {body}");
            Ok(())
        })
        .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for number in [0, 1] {
        let status = cluster.status(number).await;
        ensure!(
            status.as_ref().map_or(true, |status| status.controller_leader.is_empty()),
            "node-{number} is in a cluster: {status:?}"
        );
    }
    cluster.terminate(1)?;
    cluster.start_all()?;
    cluster.settled().await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_never_merge_and_a_new_node_does_not_choose_between_them() -> Result<()> {
    let mut one = Cluster::of(3).start().await?;
    let mut two = Cluster::of(1).trusting(&one).start().await?;
    let ids = (cluster_id(&one, 0).await?, cluster_id(&two, 0).await?);
    ensure!(ids.0 != ids.1, "two clusters with one id");
    let both = addresses(&[&one, &two]);

    // Members that are told of the other cluster's nodes stay what they are.
    for cluster in [&mut one, &mut two] {
        for number in 0..cluster.len() {
            cluster.node_mut(number).set("cluster.seeds", both.clone());
            cluster.restart(number)?;
        }
        cluster.settled().await?;
    }
    ensure!((cluster_id(&one, 0).await?, cluster_id(&two, 0).await?) == ids, "a cluster has another id");
    ensure!(one.status(0).await?.servers.len() == 3 && two.status(0).await?.servers.len() == 1, "nodes went over");

    let fresh = Setup::new().set("node.name", "fresh").set("cluster.seeds", both).set("cluster.bootstrap-expect", 5);
    let mut fresh = one.encrypt(fresh, "fresh")?.prepare()?;
    refused(&launch_and_wait_ended(&mut fresh)?, &["two clusters", &ids.0, &ids.1])?;
    ensure!(one.status(0).await?.servers.len() == 3 && two.status(0).await?.servers.len() == 1, "it joined");
    one.finish()?;
    two.finish()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_disk_a_foreign_disk_and_a_name_that_is_taken_are_refused() -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    let dir = tempfile::tempdir()?;
    let elsewhere = |folder: &str| {
        let setup = Setup::new().set("cluster.seeds", addresses(&[&cluster])).set("cluster.bootstrap-expect", 9);
        setup.data_dir(dir.path().join(folder))
    };

    // A copy of a member's disk, while the member itself runs.
    let copied = cluster.encrypt(elsewhere("copied").set("node.name", "node-2"), "node-2")?;
    let foreign = cluster.encrypt(elsewhere("foreign").set("node.name", "another"), "another")?;
    let namesake = cluster.encrypt(elsewhere("namesake").set("node.name", "node-0"), "node-0")?;
    cluster.terminate(2)?;
    copy(cluster.node(2).data_dir(), &dir.path().join("copied"))?;
    cluster.restart(2)?;
    cluster.settled().await?;
    refused(&launch_and_wait_ended(&mut copied.prepare()?)?, &["copy"])?;

    // A disk that belongs to a cluster of its own.
    let mut alone = Cluster::of(1).trusting(&cluster).data_dir(0, dir.path().join("foreign")).start().await?;
    alone.terminate(0)?;
    alone.finish()?;
    let mut foreign = foreign.prepare()?;
    tokio::task::block_in_place(|| foreign.launch())?;
    let name_taken = refused(&launch_and_wait_ended(&mut namesake.prepare()?)?, &["name", "node-0"]);
    // By now the foreign node has had its time too: it is refused or stands for itself, and is no member here.
    let servers = cluster.status(0).await?.servers;
    ensure!(servers.len() == 3, "somebody was taken in: {servers:?}");
    name_taken?;
    drop(foreign);
    cluster.settled().await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replicas_than_nodes_are_refused_with_the_number_of_nodes() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    let request = v1::CreateTopicRequest { name: "wide".into(), replication_factor: 4, ..Default::default() };
    let status = api::admin(cluster.node(1).address()).await?.create_topic(request).await.expect_err("4 of 3");
    ensure!(api::reason(&status) == "INVALID_REQUEST", "{status:?}");
    ensure!(status.message().contains('4') && status.message().contains('3'), "{status:?}");
    cluster.create_topic("narrow", 2, 3, None).await?;
    ensure!(cluster.replicas("narrow", 1).await?.len() == 3, "not three replicas");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_moves_is_followed() -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    cluster.create_topic("moving", 1, 3, None).await?;
    cluster.terminate(1)?;
    let moved = cluster.node(1).setup().data_port(free_port()).ops_port(free_port());
    cluster.replace_setup(1, moved)?;
    cluster.restart(1)?;
    cluster.settled().await?;
    cluster.caught_up("moving").await?;
    cluster.finish()
}
