//! `chronicle cluster`: shows the state of the cluster and runs operations on its nodes.
//!
//! `calls.rs` makes the calls, `outputs.rs` is the output, `recover.rs` names the source of a partition, `wait.rs` waits for the end of an operation, `confirm.rs` asks
//! for confirmation.

pub(super) mod calls;
pub(super) mod confirm;
mod outputs;
mod recover;
mod wait;

use anyhow::bail;
use clap::{Args, Subcommand};
use futures::TryStreamExt;

use super::Global;
use super::output::{Format, Table, print};
use calls::ClusterCalls;
pub(super) use outputs::ServerNames;
use outputs::{OperationOutput, StatusOutput, TransferOutput, VerifiedOutput};

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Show the state of the cluster: nodes, partitions that need attention, operations.
    Status,
    /// List the nodes.
    Members(MembersArgs),
    /// Move every replica off a node and remove it permanently.
    Decommission(BeginArgs),
    /// Transfer all leaderships away from a node and keep it from leading until it restarts or is undrained.
    Drain(BeginArgs),
    /// Let a drained node lead again.
    Undrain(NodeNameArgs),
    /// Transfer leadership of a partition, or without a topic of the controller group, to another replica.
    Transfer(TransferArgs),
    /// Compare the replicas of partitions by hashes of their data on disk.
    Verify(VerifyArgs),
    /// Recover a partition that cannot recover by itself from the replica of one node: what that one does not have is lost.
    Recover(recover::RecoverArgs),
    /// Cancel a running operation; replicas that have moved stay moved.
    Cancel(CancelArgs),
}

#[derive(Debug, Args)]
pub(super) struct MembersArgs {
    /// Show also removed nodes.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct NodeNameArgs {
    /// UUID of the node, or its name where that is unique.
    node: String,
}

#[derive(Debug, Args)]
pub(super) struct BeginArgs {
    /// UUID of the node, or its name where that is unique.
    node: String,
    /// Start without confirmation.
    #[arg(long, short = 'y')]
    yes: bool,
    /// Return once the operation has started.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// Topic of the partition. Default: the controller group.
    topic: Option<String>,
    /// Number of the partition.
    #[arg(long, short = 'p', value_name = "N", default_value_t = 0, requires = "topic", value_parser = clap::value_parser!(i32).range(0..))]
    partition: i32,
    /// UUID or unique name of the new leader. Default: the best replica.
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Only this topic.
    topic: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// Number of the operation, as `chronicle cluster status` shows it.
    id: u64,
}

pub(super) async fn run(global: &Global, command: ClusterCommand) -> anyhow::Result<()> {
    let calls = ClusterCalls::new(&global.server, global.timeout, &global.tls)?;
    match command {
        ClusterCommand::Status => status(global, &calls).await,
        ClusterCommand::Members(args) => members(global, &calls, &args).await,
        ClusterCommand::Decommission(args) => {
            let question = "Its replicas move to other nodes, and it is removed permanently.";
            confirm::ask(&format!("Decommission {}? {question}", args.node), args.yes)?;
            let operation = calls.decommission(&args.node).await?;
            follow(global, &calls, operation, args.no_wait).await
        }
        ClusterCommand::Drain(args) => {
            confirm::ask(
                &format!("Drain {}? It leads no partition until it restarts or is undrained.", args.node),
                args.yes,
            )?;
            let operation = calls.drain(&args.node).await?;
            follow(global, &calls, operation, args.no_wait).await
        }
        ClusterCommand::Undrain(args) => {
            let operation = calls.undrain(&args.node).await?;
            print_operation(global, &calls, operation).await
        }
        ClusterCommand::Transfer(args) => transfer(global, &calls, &args).await,
        ClusterCommand::Verify(args) => verify(global, &calls, &args).await,
        ClusterCommand::Recover(args) => recover::run(global, &calls, &args).await,
        ClusterCommand::Cancel(args) => {
            let operation = calls.cancel_operation(args.id).await?;
            print_operation(global, &calls, operation).await
        }
    }
}

async fn status(global: &Global, calls: &ClusterCalls) -> anyhow::Result<()> {
    let view = StatusOutput::from(calls.status().await?);
    if global.output == Format::Table {
        return view.print_tables();
    }
    print(global.output, &view, Table::default)
}

async fn members(global: &Global, calls: &ClusterCalls, args: &MembersArgs) -> anyhow::Result<()> {
    let mut view = StatusOutput::from(calls.status().await?).servers;
    view.retain(|server| args.all || server.state != "removed");
    print(global.output, &view, || outputs::members_table(&view))
}

/// Waits for the end of an operation unless `no_wait`, and prints it.
async fn follow(
    global: &Global,
    calls: &ClusterCalls,
    begun: chronicle_client::v1::Operation,
    no_wait: bool,
) -> anyhow::Result<()> {
    if no_wait {
        return print_operation(global, calls, begun).await;
    }
    let ended = wait::until_ended(calls, begun, global.timeout).await?;
    let failed = (ended.state != "done").then(|| wait::describe_failure(&ended));
    print_operation(global, calls, ended).await?;
    failed.map_or(Ok(()), |reason| bail!(reason))
}

async fn print_operation(
    global: &Global,
    calls: &ClusterCalls,
    operation: chronicle_client::v1::Operation,
) -> anyhow::Result<()> {
    // Needed only for the name; the call may fail when the node being removed answers it.
    let names = calls.servers().await.map(|answer| ServerNames::new(&answer.servers)).unwrap_or_default();
    let view = OperationOutput::new(operation, &names);
    print(global.output, &view, || view.pairs())
}

async fn transfer(global: &Global, calls: &ClusterCalls, args: &TransferArgs) -> anyhow::Result<()> {
    let names = ServerNames::new(&calls.servers().await?.servers);
    let topic = args.topic.clone().unwrap_or_default();
    let to = args.to.as_deref().unwrap_or_default();
    let leader = calls.transfer_leadership(&topic, args.partition, to).await?;
    let view = TransferOutput::new(args.topic.clone(), args.partition, leader, &names);
    print(global.output, &view, || view.pairs())
}

/// Prints the result and fails when replicas differ or could not be compared.
async fn verify(global: &Global, calls: &ClusterCalls, args: &VerifyArgs) -> anyhow::Result<()> {
    let names = ServerNames::new(&calls.servers().await?.servers);
    let answers = calls.verify(args.topic.as_deref().unwrap_or_default()).await?;
    let views: Vec<VerifiedOutput> = answers.map_ok(|answer| VerifiedOutput::new(answer, &names)).try_collect().await?;
    print(global.output, &views, || outputs::verified_table(&views))?;
    let wrong: Vec<&VerifiedOutput> = views.iter().filter(|view| !view.same()).collect();
    for view in &wrong {
        eprintln!("{} {}: {}", view.topic, view.partition, view.problem());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} of {} partitions are not the same on all their replicas", wrong.len(), views.len());
}
