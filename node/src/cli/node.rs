//! `chronicle node`: a node from its configuration.

use std::io::Write;
use std::sync::Arc;

use clap::Args;

use super::config::ConfigSource;
use super::serve::{self, Serving};

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
    serve::run(Arc::new(config), announce).await
}

/// Says on standard output, in one line, that the node serves.
pub(super) fn announce(serving: &Serving) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{serving}")?;
    out.flush()?;
    Ok(())
}
