//! `chronicle debug`: inspects nodes.
//!
//! `segment.rs` reads files without a node; `repair_commands.rs` and `offline_directory.rs` change the data directory of a node that does
//! not run; `log_level.rs` and `bundle.rs` call each node at its own address.

mod bundle;
mod log_level;
mod offline_directory;
mod repair_commands;
mod segment;

use anyhow::bail;
use chronicle_client::v1;
use clap::Subcommand;

use super::Global;

#[derive(Debug, Subcommand)]
pub(super) enum DebugCommand {
    /// Print and verify segment files (DATA/logs/LOG/INDEX.log).
    Segment(segment::SegmentArgs),
    /// Show or change the log filter of running nodes.
    LogLevel(log_level::LogLevelArgs),
    /// Replace the damaged journal of a stopped node by what can still be read of it.
    RepairJournal(repair_commands::RepairJournalArgs),
    /// Make a stopped node the source of a group that cannot recover by itself, or a copy of the source.
    Recover(repair_commands::RecoverLogArgs),
    /// Collect diagnostics of every reachable node into one .tar.gz.
    Bundle(bundle::BundleArgs),
    /// Make the cluster accept the data directory of a stopped node that was restored from a snapshot.
    AcceptRestored(offline_directory::AcceptRestoredArgs),
    /// Give a stopped node another name in its data directory.
    RenameNode(offline_directory::RenameNodeArgs),
}

pub(super) async fn run(global: &Global, command: DebugCommand) -> anyhow::Result<()> {
    match command {
        DebugCommand::Segment(args) => segment::run(global, &args),
        DebugCommand::LogLevel(args) => log_level::run(global, &args).await,
        DebugCommand::RepairJournal(args) => repair_commands::journal(global, &args),
        DebugCommand::Recover(args) => repair_commands::recover(global, &args),
        DebugCommand::Bundle(args) => bundle::run(global, &args).await,
        DebugCommand::AcceptRestored(args) => offline_directory::accept_restored(&args).await,
        DebugCommand::RenameNode(args) => offline_directory::rename_node(&args).await,
    }
}

/// Returns the members that `--node` names by UUID or unique name; all members when `--node` is not given.
fn choose(servers: Vec<v1::Server>, names: &[String]) -> anyhow::Result<Vec<v1::Server>> {
    let members: Vec<v1::Server> =
        servers.into_iter().filter(|server| server.state() != v1::ServerState::Removed).collect();
    if names.is_empty() {
        return Ok(members);
    }
    let mut chosen = Vec::new();
    for name in names {
        let found: Vec<&v1::Server> =
            members.iter().filter(|server| server.node_id == *name || server.name == *name).collect();
        match found[..] {
            [server] => chosen.push(server.clone()),
            [] => bail!("--node: {name}: the cluster has no such node"),
            _ => bail!("--node: {name}: several nodes have this name; use the UUID"),
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(node_id: &str, name: &str, state: v1::ServerState) -> v1::Server {
        v1::Server { node_id: node_id.into(), name: name.into(), state: state.into(), ..v1::Server::default() }
    }

    #[test]
    fn nodes_are_chosen_by_uuid_or_unique_name_and_removed_ones_are_none() {
        let active = v1::ServerState::Active;
        let servers = vec![
            server("1", "a", active),
            server("2", "b", active),
            server("3", "b", active),
            server("4", "c", v1::ServerState::Removed),
        ];
        let ids = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let chosen = choose(servers.clone(), &names).map_err(|error| error.to_string())?;
            Ok::<_, String>(chosen.into_iter().map(|server| server.node_id).collect::<Vec<_>>())
        };
        assert_eq!(ids(&[]).unwrap(), ["1", "2", "3"]);
        assert_eq!(ids(&["a", "3"]).unwrap(), ["1", "3"]);
        assert!(ids(&["b"]).unwrap_err().contains("several"));
        assert!(ids(&["c"]).unwrap_err().contains("no such node"));
    }
}
