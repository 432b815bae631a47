//! `chronicle node`: a node from its configuration.

use clap::Args;

use super::config::ConfigSource;
use super::serve;

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// Data directory (node.data-dir).
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
}

pub(super) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let config = args.source.load(args.data.map(|dir| format!("node.data-dir={dir}")).into_iter().collect())?;
    config.validate()?;
    serve::run(config).await
}
