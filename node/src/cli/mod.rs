//! The command line: arguments in, one command out.
//!
//! Each command is in its own file and returns `anyhow::Result`. This file turns an error into one line on standard
//! error and an exit code: 0 done, 1 failed, 2 wrong usage. Data goes to standard output (`output.rs` writes it in the
//! requested format), everything else to standard error. When the reader of the output closes it, the command ends with
//! exit code 0 and no message.

mod acl_command;
mod bench_command;
mod cert;
mod cluster;
mod completions_command;
mod config_command;
mod consume_command;
mod debug;
mod dev;
mod group_command;
mod histogram;
mod input;
mod node_command;
mod output;
mod parse;
mod produce_command;
mod quota_command;
mod run_node;
mod signal;
mod time;
mod topic_command;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use chronicle_client::{Client, ClientConfig, TlsConfig};
use clap::{Args, CommandFactory, Parser, Subcommand};

use output::Format;

/// Chronicle: a durable commit log.
#[derive(Debug, Parser)]
#[command(name = "chronicle", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: CliCommand,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
struct Global {
    /// Address of a node.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "CHRONICLE_SERVER",
        default_value = "127.0.0.1:7400",
        help_heading = "Global options"
    )]
    server: String,
    /// Output format: table for people, json or yaml for programs.
    #[arg(
        long,
        short = 'o',
        global = true,
        value_enum,
        value_name = "FORM",
        default_value = "table",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    output: Format,
    /// Timeout of each call to the node, retries included, such as 30s or 500ms.
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        default_value = "30s",
        value_parser = parse::duration,
        help_heading = "Global options"
    )]
    timeout: Duration,
    #[command(flatten)]
    tls: TlsOptions,
}

/// TLS options of connections to nodes: plaintext without `--ca`.
#[derive(Debug, Clone, Default, Args)]
struct TlsOptions {
    /// CA certificates (PEM) that node certificates are verified against; turns TLS on.
    #[arg(long, global = true, value_name = "FILE", env = "CHRONICLE_CA", help_heading = "Global options")]
    ca: Option<PathBuf>,
    /// Client certificate (PEM); needs --ca and --key.
    #[arg(long, global = true, value_name = "FILE", env = "CHRONICLE_CERT", help_heading = "Global options")]
    cert: Option<PathBuf>,
    /// Private key (PEM) of the client certificate.
    #[arg(long, global = true, value_name = "FILE", env = "CHRONICLE_KEY", help_heading = "Global options")]
    key: Option<PathBuf>,
}

impl TlsOptions {
    /// Adds the TLS options to a client's configuration.
    fn apply(&self, config: ClientConfig) -> anyhow::Result<ClientConfig> {
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => anyhow::bail!("--cert, --key: one without the other: both must be given, or neither"),
        };
        match (&self.ca, identity) {
            (None, None) => Ok(config),
            (None, Some(_)) => anyhow::bail!("--ca: missing: must be given with --cert"),
            (Some(ca), None) => Ok(config.tls(TlsConfig::new(ca.clone()))),
            (Some(ca), Some((cert, key))) => Ok(config.tls(TlsConfig::new(ca.clone()).identity(cert, key))),
        }
    }
}

impl Global {
    /// Returns a client of the node. Must be called inside the runtime.
    fn client(&self) -> anyhow::Result<Client> {
        let config = self.tls.apply(ClientConfig::new(&self.server).request_timeout(self.timeout))?;
        Ok(Client::connect(config)?)
    }
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run one node or a small cluster on this machine for development: loopback only, data in a folder, topic
    /// `default`.
    Dev(dev::DevArgs),
    /// Run a node from its configuration.
    Node(node_command::NodeArgs),
    /// Create, list, describe, change and delete topics.
    #[command(subcommand)]
    Topic(topic_command::TopicCommand),
    /// Append records from standard input or files.
    Produce(produce_command::ProduceArgs),
    /// Read records.
    Consume(consume_command::ConsumeArgs),
    /// Show the cluster, move and remove its nodes, compare replicas.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// List, describe, reset and delete consumer groups.
    #[command(subcommand)]
    Group(group_command::GroupCommand),
    /// Add, remove and list access rules (ACLs).
    #[command(subcommand)]
    Acl(acl_command::AclCommand),
    /// Set, remove and list quotas of principals.
    #[command(subcommand)]
    Quota(quota_command::QuotaCommand),
    /// Measure appends or reads.
    #[command(subcommand)]
    Bench(bench_command::BenchCommand),
    /// Inspect a node: segment files, log level, support bundle.
    #[command(subcommand)]
    Debug(debug::DebugCommand),
    /// Make certificates: a development CA, nodes, clients, the operator.
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Print the effective configuration, or a documented sample.
    Config(config_command::ConfigArgs),
    /// Print a completion script for a shell.
    Completions(completions_command::CompletionsArgs),
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime").and_then(
            |runtime| {
                let result = runtime.block_on(run(cli));
                // An unfinished read of standard input must not keep the process alive.
                runtime.shutdown_background();
                result
            },
        );
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let global = cli.global;
    match cli.command {
        CliCommand::Dev(args) => dev::run(args).await,
        CliCommand::Node(args) => node_command::run(args).await,
        CliCommand::Topic(command) => topic_command::run(&global, command).await,
        CliCommand::Produce(args) => produce_command::run(&global, args).await,
        CliCommand::Consume(args) => consume_command::run(&global, args).await,
        CliCommand::Cluster(command) => cluster::run(&global, command).await,
        CliCommand::Group(command) => group_command::run(&global, command).await,
        CliCommand::Acl(command) => acl_command::run(&global, command).await,
        CliCommand::Quota(command) => quota_command::run(&global, command).await,
        CliCommand::Bench(command) => bench_command::run(&global, command).await,
        CliCommand::Debug(command) => debug::run(&global, command).await,
        CliCommand::Cert(command) => cert::run(command),
        CliCommand::Config(args) => config_command::run(&global, &args),
        CliCommand::Completions(args) => completions_command::run(&args, &mut Cli::command()),
    }
}

/// Returns the chain of causes on one line, without causes that the text before them contains already.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the reader of the output has closed it.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage_error(line: &str) -> clap::Error {
        Cli::try_parse_from(line.split(' ')).expect_err(line)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_in_runbooks_are_commands() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations");
        let pages = [folder.to_owned(), format!("{folder}/runbooks")].map(|folder| std::fs::read_dir(folder).unwrap());
        let mut commands = 0;
        for page in pages.into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if page.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&page).unwrap();
            for line in text.lines().filter(|line| line.starts_with("chronicle ")) {
                commands += 1;
                if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                    panic!("{}: {line}: {error}", page.display());
                }
            }
        }
        assert!(commands > 20, "only {commands} commands found");
    }

    #[test]
    fn every_command_takes_the_global_options() {
        for command in [
            "topic list",
            "produce",
            "consume",
            "bench produce",
            "bench consume",
            "cluster members",
            "group list",
            "acl list",
            "quota list",
            "config",
            "dev",
        ] {
            let line = format!("chronicle {command} --server host:1 --output json");
            let cli = Cli::try_parse_from(line.split(' ')).expect(command);
            assert_eq!((cli.global.server.as_str(), cli.global.output), ("host:1", Format::Json), "{command}");
        }
    }

    #[test]
    fn dev_takes_one_to_nine_nodes() {
        for nodes in ["1", "9"] {
            assert!(Cli::try_parse_from(["chronicle", "dev", "--nodes", nodes]).is_ok());
        }
        for nodes in ["0", "10", "three"] {
            assert_eq!(usage_error(&format!("chronicle dev --nodes {nodes}")).exit_code(), 2, "{nodes}");
        }
    }

    #[test]
    fn wrong_values_are_usage_errors() {
        for line in [
            "chronicle consume --from yesterday",
            "chronicle consume --max -1",
            "chronicle consume --group g --partition 1",
            "chronicle consume --group g --to 9",
            "chronicle consume one --topic two",
            "chronicle group reset g t",
            "chronicle group reset g t --to soon",
            "chronicle consume --separator \\q",
            "chronicle produce -H novalue",
            "chronicle produce --compression lzma",
            "chronicle produce --expect-next -1",
            "chronicle produce --lines a --file b",
            "chronicle produce --keyed",
            "chronicle bench produce --mode fast",
            "chronicle topic create",
            "chronicle topic create t --retention 5x",
            "chronicle cluster decommission",
            "chronicle cluster cancel last",
            "chronicle cluster transfer --partition 3",
            "chronicle cluster transfer orders --partition -1",
            "chronicle --timeout soon topic list",
        ] {
            let error = usage_error(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_closed_output_is_no_error_and_others_are_one_line() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert!(is_broken_pipe(&error));
        let error = anyhow::anyhow!("first\nsecond").context("reading  x");
        assert!(!is_broken_pipe(&error));
        assert_eq!(one_line(&error), "reading x: first second");
        let quoted = anyhow::anyhow!("in use").context("port 1: in use");
        assert_eq!(one_line(&quoted), "port 1: in use");
    }
}
