//! `chronicle dev`: a node for development, with nothing to prepare.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::config::ConfigSource;
use super::serve;

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Data directory, created when missing.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    /// Number of nodes; only 1 for now.
    #[arg(long, value_name = "N", default_value = "1", value_parser = one_node)]
    nodes: u32,
    /// Port for gRPC and HTTP; 0: any free port.
    #[arg(long, value_name = "PORT", default_value_t = 7400)]
    port: u16,
    /// Port for health and metrics; 0: any free port.
    #[arg(long, value_name = "PORT", default_value_t = 9644)]
    ops_port: u16,
    #[command(flatten)]
    source: ConfigSource,
}

fn one_node(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(1) => Ok(1),
        Ok(0) | Err(_) => Err("must be a number from 1".into()),
        Ok(_) => Err("several nodes in one process are not available yet; use 1".into()),
    }
}

pub(super) async fn run(args: DevArgs) -> anyhow::Result<()> {
    debug_assert_eq!(args.nodes, 1, "the parser refuses other numbers");
    // Quiet unless asked otherwise; what --set says about the log wins over this, and the options of `dev` over --set.
    let mut config = args.source.load(Vec::new())?;
    if config.log == Default::default() {
        // openraft warns of what is normal for a group that starts.
        config.log.filter = "warn,openraft=error".into();
    }
    config.node.data_dir = args.data;
    config.node.default_topic = "default".into();
    config.listeners.data = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    config.listeners.ops = SocketAddr::from((Ipv4Addr::LOCALHOST, args.ops_port));
    config.validate()?;
    serve::run(config).await
}
