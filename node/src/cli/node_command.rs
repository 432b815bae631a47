//! `chronicle node`: runs a node from its configuration.

use std::sync::Arc;

use anyhow::{Context, ensure};
use chronicle_node::config::live::Reload;
use chronicle_node::config::{self, Config, TlsMode};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::config_command::ConfigSource;
use super::run_node;

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// Data directory (node.data-dir).
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Pid of the process that starts this node; the node is killed when that process ends.
    #[arg(long, value_name = "PID", hide = true)]
    die_with_parent: Option<i32>,
}

pub(super) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    if let Some(parent) = args.die_with_parent {
        die_with(parent)?;
    }
    let sources = args.source.sources(args.data.map(|dir| format!("node.data-dir={dir}")).into_iter().collect());
    let config = config::load(&sources)?;
    check(&config)?;
    let reload = sources.file.clone().map(|file| Reload {
        file,
        load: Box::new(move |text| {
            let config = config::load_text(&sources, Some(text)).map_err(|error| error.to_string())?;
            check(&config).map_err(|error| error.to_string())?;
            Ok(config)
        }),
        now: Arc::default(),
    });
    run_node::run(config, reload).await
}

/// Checks that a node may run with this configuration.
fn check(config: &Config) -> anyhow::Result<()> {
    config.validate()?;
    ensure!(
        config.security.tls.mode != TlsMode::Unset,
        "security.tls.mode: unset: must be enabled (with cert-file, key-file and ca-file; see `chronicle cert`) or \
         disabled (plaintext: any client that can connect to {} can read and write everything)",
        config.listeners.data
    );
    Ok(())
}

/// Asks the kernel to kill this process when its parent (strictly: the thread that started it) ends.
fn die_with(parent: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("--die-with-parent")?;
    // The parent may have ended before the call.
    let still_there = Pid::from_raw(parent).is_some_and(|parent| getppid() == Some(parent));
    ensure!(still_there, "--die-with-parent: {parent}: must be the running process that started this node");
    Ok(())
}
