//! `chronicle cluster recover`: a person names the replica from which a partition recovers.

use anyhow::{Context, bail};
use chronicle_client::v1;
use clap::Args;
use serde::Serialize;

use super::calls::ClusterCalls;
use super::{ServerNames, confirm};
use crate::cli::Global;
use crate::cli::output::{Table, print};

#[derive(Debug, Args)]
pub(in crate::cli) struct RecoverArgs {
    /// The partition.
    #[arg(long, value_name = "TOPIC/PARTITION")]
    partition: String,
    /// UUID or unique name of the node whose replica is the truth from now on.
    #[arg(long, value_name = "NODE")]
    source: String,
    /// Only show what each replica has.
    #[arg(long)]
    dry_run: bool,
    /// Recover without confirmation.
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct ReplicaRecoveryOutput {
    node: String,
    node_id: String,
    state: String,
    damaged: bool,
    /// Raft index after the last entry that it has.
    next_index: u64,
    /// Raft index (exclusive) up to which it may have held entries; 0: not known.
    held_end: u64,
    error: String,
}

pub(super) async fn run(global: &Global, calls: &ClusterCalls, args: &RecoverArgs) -> anyhow::Result<()> {
    let (topic, partition) = args.partition.rsplit_once('/').context("--partition: must be TOPIC/PARTITION")?;
    let partition: i32 = partition.parse().ok().filter(|number| *number >= 0).with_context(|| {
        format!("--partition: {}: what follows the last slash must be the number of a partition", args.partition)
    })?;
    let names = calls.servers().await.map(|answer| ServerNames::new(&answer.servers)).unwrap_or_default();
    let request = v1::RecoverRequest { topic: topic.to_owned(), partition, source: args.source.clone(), dry_run: true };
    let before = outputs(calls.recover(request.clone()).await?, &names);
    if args.dry_run {
        return print(global.output, &before, || table(&before));
    }
    table(&before).write(&mut std::io::stderr().lock())?;
    let question =
        "Acknowledged records that it does not have are lost; the other replicas move to quarantine folders.";
    confirm::ask(&format!("Recover {} from {}? {question}", args.partition, args.source), args.yes)?;
    let after = outputs(calls.recover(v1::RecoverRequest { dry_run: false, ..request }).await?, &names);
    print(global.output, &after, || table(&after))?;
    let failed: Vec<&ReplicaRecoveryOutput> = after.iter().filter(|replica| !replica.error.is_empty()).collect();
    for replica in &failed {
        eprintln!("{}: {}", replica.node, replica.error);
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {} replicas did not take part: before such a node starts again, run `chronicle debug recover --copy` in its data directory",
        failed.len(),
        after.len()
    )
}

fn outputs(answer: v1::RecoverResponse, names: &ServerNames) -> Vec<ReplicaRecoveryOutput> {
    let output = |replica: v1::ReplicaRecovery| ReplicaRecoveryOutput {
        node: names.of(&replica.node_id).to_owned(),
        node_id: replica.node_id,
        state: replica.state,
        damaged: replica.damaged,
        next_index: replica.next_index,
        held_end: replica.held_end,
        error: replica.error,
    };
    answer.replicas.into_iter().map(output).collect()
}

fn table(views: &[ReplicaRecoveryOutput]) -> Table {
    let mut table = Table::new(&["NODE", "STATE", "DAMAGED", "HAS UP TO", "HAD UP TO"]);
    for view in views {
        let state = if view.error.is_empty() { &view.state } else { &view.error };
        let held = if view.held_end == 0 { "?".to_owned() } else { view.held_end.to_string() };
        let damaged = if view.damaged { "yes" } else { "no" };
        table.row(vec![view.node.clone(), state.clone(), damaged.into(), view.next_index.to_string(), held]);
    }
    table
}
