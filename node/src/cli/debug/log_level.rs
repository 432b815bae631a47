//! `chronicle debug log-level`: shows or changes the log filter of running nodes.

use std::time::Duration;

use anyhow::bail;
use chronicle_client::v1;
use clap::Args;
use serde::Serialize;

use super::choose;
use crate::cli::output::{Table, print};
use crate::cli::{Global, parse};

#[derive(Debug, Args)]
pub(in crate::cli) struct LogLevelArgs {
    /// A level (error, warn, info, debug, trace) or a filter such as `info,chronicle_node::raft=debug`; without it the
    /// current filter is shown.
    filter: Option<String>,
    /// Only this node (UUID or unique name); repeat for several. Default: every member of the cluster.
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// Time until the configured filter applies again, such as 10m; at most a day.
    #[arg(long = "for", value_name = "TIME", value_parser = parse::duration, requires = "filter")]
    lasts: Option<Duration>,
    /// Restore the configured filter now.
    #[arg(long, conflicts_with = "filter")]
    reset: bool,
}

#[derive(Debug, Serialize)]
struct LogLevelOutput {
    node: String,
    address: String,
    filter: String,
    configured: String,
    /// Milliseconds until the configured filter applies again; absent: no expiry.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_ms: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

pub(super) async fn run(global: &Global, args: &LogLevelArgs) -> anyhow::Result<()> {
    let client = global.client()?;
    let servers = choose(client.get_servers().await?.servers, &args.node)?;
    let filter = if args.reset { Some(String::new()) } else { args.filter.clone() };
    let mut views = Vec::new();
    for server in servers {
        let answer = match &filter {
            None => client.log_filter(&server.address).await,
            Some(filter) => {
                let lasts_ms = args.lasts.map_or(0, |lasts| lasts.as_millis() as u64);
                let request = v1::SetLogFilterRequest { filter: filter.clone(), lasts_ms };
                client.set_log_filter(&server.address, request).await
            }
        };
        let (answer, error) = match answer {
            Ok(answer) => (answer, String::new()),
            Err(error) => (v1::LogFilter::default(), error.to_string()),
        };
        views.push(LogLevelOutput {
            node: server.name,
            address: server.address,
            filter: answer.filter,
            configured: answer.configured,
            remaining_ms: (answer.remaining_ms > 0).then_some(answer.remaining_ms),
            error,
        });
    }
    print(global.output, &views, || table(&views))?;
    let failed: Vec<&LogLevelOutput> = views.iter().filter(|view| !view.error.is_empty()).collect();
    for view in &failed {
        eprintln!("{} ({}): {}", view.node, view.address, view.error);
    }
    match failed.len() {
        0 => Ok(()),
        failed => bail!("{failed} of {} nodes did not answer or rejected the request", views.len()),
    }
}

fn table(views: &[LogLevelOutput]) -> Table {
    let mut table = Table::new(&["NODE", "ADDRESS", "FILTER", "CONFIGURED", "FOR"]);
    for view in views {
        let lasts = view.remaining_ms.map_or_else(|| "-".to_owned(), |ms| format!("{}s", ms.div_ceil(1000)));
        let filter = if view.error.is_empty() { view.filter.clone() } else { "?".to_owned() };
        table.row(vec![view.node.clone(), view.address.clone(), filter, view.configured.clone(), lasts]);
    }
    table
}
