//! A node from start to stop, for `node` and `dev`.

use chronicle_node::config::Config;
use chronicle_node::config::live::Reload;
use chronicle_node::runtime;
use chronicle_node::runtime::Serving;
use chronicle_node::telemetry::logging;
use chronicle_node::telemetry::traces::Traces;
use rustix::fs::Mode;
use tokio_util::sync::CancellationToken;

use super::signal;

/// Serves until SIGINT or SIGTERM, then stops in good order; says on standard output when requests are accepted. At SIGHUP it
/// looks at the configuration file again, where `reload` names one.
pub(super) async fn run(config: Config, reload: Option<Reload>) -> anyhow::Result<()> {
    // What it makes is the data of others: nobody's but the owner's to change, and of the group to read.
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
    // Nothing is lost when the signal comes first: the node is waited for below.
    tokio::select! {
        ended = &mut node => return Ok(ended??),
        requested = signal::stop_requested() => requested?,
    }
    stop.cancel();
    Ok(node.await??)
}

/// How the line begins that says that requests are accepted.
const ANNOUNCEMENT: &str = "chronicle serves on ";

/// Whether this line of a node's standard output says that it serves.
pub(super) fn is_announcement(line: &str) -> bool {
    line.starts_with(ANNOUNCEMENT)
}

/// One line on standard output; whoever started the node may have closed it.
fn announce(serving: &Serving) {
    use std::io::Write;
    let Serving { data, ops, data_dir } = serving;
    let mut out = std::io::stdout().lock();
    let dir = data_dir.display();
    let _ = writeln!(out, "{ANNOUNCEMENT}{data} (gRPC, HTTP), ops on {ops}, data in {dir}").and_then(|()| out.flush());
}
