//! `chronicle dev`: runs one node, or a small cluster of real processes, for development without any preparation.
//!
//! One node runs in this process. Several nodes run as child processes, each with its own data folder and configuration
//! under `--data`: `plan.rs` computes their configurations, `supervisor.rs` keeps them running.

mod certificates;
mod plan;
mod supervisor;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use chronicle_node::config::{Config, TlsMode};
use clap::Args;

use super::config_command::ConfigSource;
use super::run_node;

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Data directory, created when missing.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    /// Number of nodes, 1 to 9; several nodes are separate processes. Default: the nodes in the data directory, else 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: Option<u16>,
    /// Port for gRPC and HTTP; with several nodes the port of the first, the others count up. 0: any free port (one
    /// node only).
    #[arg(long, value_name = "PORT", default_value_t = 7400)]
    port: u16,
    /// Port for health and metrics; with several nodes the port of the first, the others count up. 0: any free port
    /// (one node only).
    #[arg(long, value_name = "PORT", default_value_t = 9644)]
    ops_port: u16,
    /// Use TLS: make a CA in the folder tls of the data directory, unless it exists, and certificates for the nodes and
    /// for the client admin. A data directory that has a CA uses TLS without this option.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) async fn run(args: DevArgs) -> anyhow::Result<()> {
    // Log only warnings by default. --set overrides this for the log, and the options of `dev` override --set.
    let mut config = args.source.load(Vec::new())?;
    if config.log == Default::default() {
        // openraft logs warnings that are normal while a group starts.
        config.log.filter = "warn,openraft=error".into();
    }
    config.node.default_topic = "default".into();
    let found = plan::existing(&args.data)?;
    if config.security.tls.mode == TlsMode::Unset {
        config.security.tls.mode = TlsMode::Disabled;
    }
    let certificates = certificates::Certificates::of(&args.data);
    let encrypt = args.tls || certificates.exist();
    if args.nodes.unwrap_or(1) == 1 && found.is_empty() {
        if encrypt {
            certificates.apply(&mut config)?;
        }
        return run_one(config, &args).await;
    }
    let nodes = args.nodes.map_or(found.len(), usize::from);
    let mut members = plan::plan(&config, &args.data, &found, nodes, args.port, args.ops_port)?;
    if encrypt {
        members.iter_mut().try_for_each(|member| certificates.apply(&mut member.config))?;
    }
    supervisor::run(&args.data, members, encrypt.then_some(certificates)).await
}

async fn run_one(mut config: Config, args: &DevArgs) -> anyhow::Result<()> {
    config.node.data_dir.clone_from(&args.data);
    config.listeners.data = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    config.listeners.ops = SocketAddr::from((Ipv4Addr::LOCALHOST, args.ops_port));
    config.validate()?;
    run_node::run(config, None).await
}
