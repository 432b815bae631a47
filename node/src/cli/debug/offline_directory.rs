//! `chronicle debug accept-restored` and `rename-node`: change the data directory of a node that does not run.

use std::path::PathBuf;

use anyhow::Context;
use chronicle_node::runtime::OfflineDirectory;
use clap::Args;

use crate::cli::cluster::confirm;

#[derive(Debug, Args)]
pub(in crate::cli) struct AcceptRestoredArgs {
    /// Data directory of a node that does not run.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Generation to set. Default: the time in milliseconds since the Unix epoch.
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RenameNodeArgs {
    /// Data directory of a node that does not run.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The new name, as in `node.name`.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn accept_restored(args: &AcceptRestoredArgs) -> anyhow::Result<()> {
    let directory = open(&args.data).await?;
    let owner = directory.owner().clone();
    println!(
        "{}: node {} ({}) of cluster {}, generation {}\n\
         The other nodes will take part with this directory again, although it may lack records that the node has\n\
         acknowledged and votes that it has given. Records that are in no restored directory are gone, and nobody will\n\
         notice. Do this only when the whole cluster is restored and all its nodes are stopped. To replace the\n\
         directory of one node, empty it instead: the node gets its records from the others.",
        args.data.display(),
        owner.name,
        owner.node_id,
        owner.cluster_id,
        owner.generation,
    );
    let result = match confirm::ask("Accept this directory?", args.yes) {
        Ok(()) => directory.accept_restored(args.generation).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    directory.close()?;
    println!("generation {}", result?);
    Ok(())
}

pub(super) async fn rename_node(args: &RenameNodeArgs) -> anyhow::Result<()> {
    let directory = open(&args.data).await?;
    let owner = directory.owner().clone();
    println!("{}: node {} ({}) of cluster {}", args.data.display(), owner.name, owner.node_id, owner.cluster_id);
    let result = match confirm::ask(&format!("Rename it to {}?", args.name), args.yes) {
        Ok(()) => directory.rename(&args.name).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    directory.close()?;
    result?;
    println!("name {}", args.name);
    Ok(())
}

async fn open(data: &std::path::Path) -> anyhow::Result<OfflineDirectory> {
    OfflineDirectory::open(data).await.with_context(|| format!("--data {}", data.display()))
}
