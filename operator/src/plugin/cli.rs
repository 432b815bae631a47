//! The command line of the plugin, and its exit codes.

use std::io::{self, Write};

use clap::{Parser, Subcommand};

use super::bundle::BundleArgs;
use super::drain::DrainArgs;
use super::error::PluginError;
use super::logs::LogsArgs;
use super::members::MembersArgs;
use super::plan::PlanArgs;
use super::session::{ConnectionFlags, Session};
use super::status::StatusArgs;

/// Inspect Chronicle clusters and drain their nodes.
///
/// Exit codes: 0 success, 1 failure, 2 invalid command line, 3 timed out, 4 not allowed, 5 no such cluster or pod.
#[derive(Debug, Parser)]
#[command(name = "kubectl-chronicle", bin_name = "kubectl chronicle", version)]
pub struct PluginCli {
    #[command(flatten)]
    flags: ConnectionFlags,
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// List clusters, or show one: conditions, running operation, members, versions, capacity.
    Status(StatusArgs),
    /// List the nodes of a cluster, as reported by the nodes where they can be reached.
    Members(MembersArgs),
    /// Show what the operator would do next, or what it waits for, without changing anything.
    Plan(PlanArgs),
    /// Transfer the leadership of a node to other nodes, so that its pod can be deleted or evicted.
    Drain(DrainArgs),
    /// Print the logs of all pods of a cluster, merged by time.
    Logs(LogsArgs),
    /// Write a support bundle (.tar.gz) without secrets.
    Bundle(BundleArgs),
}

impl PluginCli {
    /// Runs the command.
    ///
    /// # Errors
    /// The failure; [`PluginError::exit_code`] is its exit code.
    pub fn execute(self) -> Result<(), PluginError> {
        // kube and the Chronicle client share one TLS provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let done = runtime.map_err(PluginError::io("the runtime"))?.block_on(self.run(&mut io::stdout()));
        match done {
            // The reader closed the pipe, as `head` does.
            Err(PluginError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    async fn run(self, out: &mut (dyn Write + Send)) -> Result<(), PluginError> {
        let session = Session::open(&self.flags).await?;
        match &self.command {
            PluginCommand::Status(args) => super::status::run(&session, args, out).await,
            PluginCommand::Members(args) => super::members::run(&session, args, out).await,
            PluginCommand::Plan(args) => super::plan::run(&session, args, out).await,
            PluginCommand::Drain(args) => super::drain::run(&session, args, out).await,
            PluginCommand::Logs(args) => super::logs::run(&session, args, out).await,
            PluginCommand::Bundle(args) => super::bundle::run(&session, args, out).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_takes_kubectls_flags_anywhere() {
        PluginCli::command().debug_assert();
        for line in [
            "kubectl-chronicle -n shop status",
            "kubectl-chronicle status log -o wide --context prod",
            "kubectl-chronicle drain log log-2 --timeout 5m -n shop",
            "kubectl-chronicle logs log log-1 --follow --since 10m --kubeconfig k",
            "kubectl-chronicle bundle log -f out.tar.gz",
        ] {
            PluginCli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        assert!(PluginCli::try_parse_from(["kubectl-chronicle", "status", "log", "-A"]).is_err());
    }
}
