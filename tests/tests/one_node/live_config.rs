//! A node that runs follows its configuration file, as far as it says.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1;
use chronicle_tests::api;
use chronicle_tests::node::{Node, PATIENCE, Setup};

async fn configuration(node: &Node) -> Result<v1::Configuration> {
    let status = api::cluster(node.address()).await?.get_status(v1::GetStatusRequest {}).await?.into_inner();
    status.configuration.context("the node looks at no file")
}

/// Waits until the node says this of its file.
async fn until(node: &Node, what: &str, is: impl Fn(&v1::Configuration) -> bool) -> Result<v1::Configuration> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = configuration(node).await?;
        if is(&said) {
            return Ok(said);
        }
        ensure!(Instant::now() < deadline, "{what}: {said:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the node has taken the file as it is now.
async fn taken(node: &Node) -> Result<v1::Configuration> {
    let digest = blake3::hash(&std::fs::read(node.config_file())?).to_hex().to_string();
    until(node, "not taken", |said| said.file_digest == digest && said.error.is_empty()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn live_settings_take_effect_while_the_node_runs_and_others_wait_for_a_restart() -> Result<()> {
    let mut node = Setup::new().set("node.config-reload-ms", 100).set("log.filter", "warn").start()?;
    let pid = node.pid();
    ensure!(taken(&node).await?.restart_fields.is_empty());
    let mut log = api::log(node.address()).await?;
    api::append(&mut log, "default", "before".into()).await?;

    node.reconfigure("limits.connections-max", 7)?;
    node.reconfigure("limits.in-flight-bytes-max", 300 << 20)?;
    node.reconfigure("log.filter", "info,chronicle_node=debug")?;
    node.reconfigure("storage.reserve-bytes", 1_u64 << 60)?;
    node.reconfigure("partitions.producers-max", 77)?;
    let said = taken(&node).await?;
    assert_eq!(said.restart_fields, ["partitions.producers-max"]);
    assert_eq!(node.metric("chronicle_connections_limit")?, Some(7.0));
    assert_eq!(node.metric("chronicle_config_restart_fields")?, Some(1.0));
    let deadline = Instant::now() + PATIENCE;
    // The listener takes it to the budget, a moment later.
    while node.metric("chronicle_in_flight_bytes_limit")? != Some(f64::from(300 << 20)) {
        ensure!(Instant::now() < deadline, "the limit of bytes in flight stays");
    }
    let refused = until_refused(&mut log).await?;
    assert_eq!(refused, "DISK_FULL");
    let deadline = Instant::now() + PATIENCE;
    while !node.log().contains("DEBUG chronicle_node") {
        ensure!(Instant::now() < deadline, "nothing below warn is logged");
        // Something to log.
        api::connect(node.address()).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    node.reconfigure("storage.reserve-bytes", 0)?;
    taken(&node).await?;
    let deadline = Instant::now() + PATIENCE;
    while api::append(&mut log, "default", "after".into()).await.is_err() {
        ensure!(Instant::now() < deadline, "still refused");
    }
    assert_eq!(node.pid(), pid);

    node.terminate()?;
    node.restart()?;
    ensure!(taken(&node).await?.restart_fields.is_empty(), "what waited for a restart still waits");
    Ok(())
}

/// The reason of the first append that is refused; looking at the disk is not done for every one of them.
async fn until_refused(
    log: &mut chronicle_proto::v1::log_client::LogClient<tonic::transport::Channel>,
) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Err(error) = api::append(log, "default", "refused".into()).await {
            return Ok(api::reason(&error));
        }
        ensure!(Instant::now() < deadline, "nothing is refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_is_rejected_as_a_whole_and_reported() -> Result<()> {
    let mut node = Setup::new().set("node.config-reload-ms", 100).set("limits.topics-max", 50).start()?;
    taken(&node).await?;
    node.reconfigure("limits.connections-max", 9)?;
    taken(&node).await?;
    for (text, word) in [
        ("limits: {connections-max: -3}", "limits.connections-max"),
        ("limits: {conections-max: 3}", "limits.conections-max"),
        ("log: {filter: '=,='}", "log.filter"),
        ("limits: {connections-max: 5}", "security.tls.mode"),
        ("{{{", "must be YAML"),
    ] {
        std::fs::write(node.config_file(), text)?;
        until(&node, word, |said| said.error.contains(word)).await?;
        assert_eq!(node.metric("chronicle_config_refused")?, Some(1.0));
        assert_eq!(node.metric("chronicle_connections_limit")?, Some(9.0), "{text}");
    }
    std::fs::remove_file(node.config_file())?;
    until(&node, "gone", |said| said.error.contains("No such file")).await?;
    api::append(&mut api::log(node.address()).await?, "default", "record".into()).await?;
    node.reconfigure("limits.connections-max", 11)?;
    taken(&node).await?;
    assert_eq!(node.metric("chronicle_connections_limit")?, Some(11.0));
    assert_eq!(node.metric("chronicle_config_refused")?, Some(0.0));
    ensure!(node.metric("chronicle_config_reload_failures_total")? >= Some(6.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_file_at_once() -> Result<()> {
    let mut node = Setup::new().set("node.config-reload-ms", 0).start()?;
    taken(&node).await?;
    node.reconfigure("limits.connections-max", 13)?;
    node.hang_up()?;
    taken(&node).await?;
    assert_eq!(node.metric("chronicle_connections_limit")?, Some(13.0));
    Ok(())
}
