//! `chronicle debug repair-journal` and `chronicle debug recover`: repairs in the data directory of a stopped node.

use std::path::PathBuf;

use anyhow::bail;
use chronicle_log::LogId;
use chronicle_node::runtime::{JournalRepairMode, OfflineRole, recover_offline, repair_journal};
use clap::Args;
use serde::Serialize;

use crate::cli::Global;
use crate::cli::cluster::confirm;
use crate::cli::output::{Table, print};

#[derive(Debug, Args)]
pub(in crate::cli) struct RepairJournalArgs {
    /// Data directory of the stopped node.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Fill every log from the other nodes. The default where the node did not found its cluster alone.
    #[arg(long)]
    refill: bool,
    /// Keep every log as it is: the node is the only one, and what the lost records said is lost.
    #[arg(long, conflicts_with = "refill")]
    accept_loss: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RecoverLogArgs {
    /// Data directory of the stopped node.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Log of the group, as its folder in DATA/logs is called.
    #[arg(long, value_name = "LOG")]
    log: LogId,
    /// Keep this node's log as the truth: what it does not have is lost.
    #[arg(long, required_unless_present = "copy")]
    source: bool,
    /// Set this node's log aside and copy that of the source.
    #[arg(long, conflicts_with = "source")]
    copy: bool,
    /// Do it without confirmation.
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct JournalRepairOutput {
    damage: Option<String>,
    records: u64,
    unreadable: Vec<(u64, u64)>,
    refill: Vec<String>,
    quarantine: Option<PathBuf>,
}

pub(super) fn journal(global: &Global, args: &RepairJournalArgs) -> anyhow::Result<()> {
    let mode = match (args.refill, args.accept_loss) {
        (true, _) => JournalRepairMode::Refill,
        (_, true) => JournalRepairMode::AcceptLoss,
        _ => JournalRepairMode::Auto,
    };
    let report = repair_journal(&args.data, mode)?;
    let view = JournalRepairOutput {
        damage: report.damage,
        records: report.records,
        unreadable: report.gaps,
        refill: report.refill.iter().map(ToString::to_string).collect(),
        quarantine: report.quarantine,
    };
    print(global.output, &view, || {
        let Some(damage) = &view.damage else {
            return Table::pairs(vec![("Journal", "not damaged, nothing was changed".to_owned())]);
        };
        let bytes: u64 = view.unreadable.iter().map(|(from, to)| to - from).sum();
        Table::pairs(vec![
            ("Damage", damage.clone()),
            ("Records kept", view.records.to_string()),
            ("Unreadable", format!("{bytes} bytes in {} places", view.unreadable.len())),
            ("Logs to be filled", view.refill.len().to_string()),
            ("Damaged file", view.quarantine.as_ref().map_or("-".to_owned(), |path| path.display().to_string())),
        ])
    })
}

#[derive(Debug, Serialize)]
struct RecoveredLogOutput {
    log: String,
    role: &'static str,
    next_index: u64,
}

pub(super) fn recover(global: &Global, args: &RecoverLogArgs) -> anyhow::Result<()> {
    if args.source == args.copy {
        bail!("either --source or --copy must be given");
    }
    let (role, name, question) = match args.source {
        true => (OfflineRole::Source, "source", "Acknowledged records that this node does not have are lost."),
        false => {
            (OfflineRole::Copy, "copy", "Its files move to a quarantine folder, and it copies those of the source.")
        }
    };
    confirm::ask(&format!("Make this node the {name} of log {}? {question}", args.log), args.yes)?;
    let next_index = recover_offline(&args.data, args.log, role)?;
    let view = RecoveredLogOutput { log: args.log.to_string(), role: name, next_index };
    print(global.output, &view, || {
        Table::pairs(vec![
            ("Log", view.log.clone()),
            ("Role", view.role.to_owned()),
            ("Kept up to raft index", view.next_index.to_string()),
        ])
    })
}
