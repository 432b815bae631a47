//! Runs a node from start to stop, for `node` and `dev`.

use chronicle_node::config::Config;
use chronicle_node::config::live::Reload;
use chronicle_node::runtime;
use chronicle_node::runtime::Serving;
use chronicle_node::telemetry::logging;
use chronicle_node::telemetry::traces::Traces;
use rustix::fs::Mode;
use tokio_util::sync::CancellationToken;

use super::signal;

/// Serves until SIGINT or SIGTERM, then stops gracefully. Prints a line on standard output when the node accepts
/// requests. On SIGHUP it checks the configuration file again, where `reload` names one.
pub(super) async fn run(config: Config, reload: Option<Reload>) -> anyhow::Result<()> {
    // The node's files contain data of its clients: the owner may write them, the group may read them, no other user
    // has access.
    rustix::process::umask(Mode::WGRP | Mode::RWXO);
    let traces = Traces::start(&config.telemetry.traces, &config.node.name)?;
    logging::init(&config.log, traces.as_ref())?;
    let served = until_stopped(config, reload).await;
    if let Some(traces) = traces {
        traces.shutdown().await;
    }
    served
}

async fn until_stopped(config: Config, reload: Option<Reload>) -> anyhow::Result<()> {
    if let Some(reload) = &reload {
        signal::on_hangup(reload.now.clone())?;
    }
    let stop = CancellationToken::new();
    let mut node = tokio::spawn(runtime::run(config, reload, stop.clone(), announce));
    // Nothing is lost when the signal comes first: the node is awaited below.
    tokio::select! {
        ended = &mut node => return Ok(ended??),
        requested = signal::stop_requested() => requested?,
    }
    stop.cancel();
    Ok(node.await??)
}

/// Beginning of the line that a node prints when it accepts requests.
const ANNOUNCEMENT: &str = "chronicle serves on ";

/// Whether this line of a node's standard output announces that it accepts requests.
pub(super) fn is_announcement(line: &str) -> bool {
    line.starts_with(ANNOUNCEMENT)
}

/// Prints one line on standard output, which the parent process may have closed.
fn announce(serving: &Serving) {
    use std::io::Write;
    let Serving { data, ops, data_dir } = serving;
    let mut out = std::io::stdout().lock();
    let dir = data_dir.display();
    let _ = writeln!(out, "{ANNOUNCEMENT}{data} (gRPC, HTTP), ops on {ops}, data in {dir}").and_then(|()| out.flush());
}
