//! `chronicle quota`: rate limits of principals.

use chronicle_client::{Client, v1};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use super::output::{Table, print};
use super::parse;

#[derive(Debug, Subcommand)]
pub(super) enum QuotaCommand {
    /// Set the quota of a principal, or the default quota; a rate that is not given is unlimited.
    Set(SetArgs),
    /// Remove the quota of a principal, or the default quota.
    Remove(QuotaTargetArgs),
    /// List all quotas.
    List,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct QuotaTargetArgs {
    /// The principal.
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// The default quota, of every principal without its own.
    #[arg(long)]
    default: bool,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    #[command(flatten)]
    who: QuotaTargetArgs,
    /// Bytes of records appended on one node per second, such as 10MiB.
    #[arg(long, value_name = "BYTES", value_parser = parse::size)]
    bytes_in: Option<usize>,
    /// Bytes of records read from one node per second, such as 10MiB.
    #[arg(long, value_name = "BYTES", value_parser = parse::size)]
    bytes_out: Option<usize>,
    /// Requests to one node per second.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
}

pub(super) async fn run(global: &Global, command: QuotaCommand) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        QuotaCommand::Set(args) => {
            let SetArgs { who, bytes_in, bytes_out, requests } = args;
            let bytes = |bytes: Option<usize>| bytes.map_or(0, |bytes| bytes as u64);
            let (bytes_in, bytes_out, requests) = (bytes(bytes_in), bytes(bytes_out), requests.unwrap_or(0));
            client.set_quota(who.principal, v1::Quota { bytes_in, bytes_out, requests }).await?;
            list(global, &client).await
        }
        QuotaCommand::Remove(who) => {
            client.delete_quota(who.principal).await?;
            list(global, &client).await
        }
        QuotaCommand::List => list(global, &client).await,
    }
}

/// No principal: the default quota, of every principal without its own. No rate: unlimited.
#[derive(Debug, Serialize)]
struct QuotaOutput {
    principal: Option<String>,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    requests: Option<u64>,
}

impl QuotaOutput {
    fn new(principal: Option<String>, quota: v1::Quota) -> Self {
        let bound = |rate: u64| (rate > 0).then_some(rate);
        let v1::Quota { bytes_in, bytes_out, requests } = quota;
        Self { principal, bytes_in: bound(bytes_in), bytes_out: bound(bytes_out), requests: bound(requests) }
    }
}

async fn list(global: &Global, client: &Client) -> anyhow::Result<()> {
    let v1::ListQuotasResponse { default_quota, quotas } = client.list_quotas().await?;
    let default = default_quota.map(|quota| QuotaOutput::new(None, quota));
    let own = |one: v1::PrincipalQuota| QuotaOutput::new(Some(one.principal), one.quota.unwrap_or_default());
    let views: Vec<QuotaOutput> = default.into_iter().chain(quotas.into_iter().map(own)).collect();
    print(global.output, &views, || {
        let mut table = Table::new(&["PRINCIPAL", "BYTES IN", "BYTES OUT", "REQUESTS"]);
        let rate = |rate: Option<u64>| rate.map_or("-".to_owned(), |rate| rate.to_string());
        for view in &views {
            let principal = view.principal.clone().unwrap_or_else(|| "(default)".to_owned());
            table.row(vec![principal, rate(view.bytes_in), rate(view.bytes_out), rate(view.requests)]);
        }
        table
    })
}
