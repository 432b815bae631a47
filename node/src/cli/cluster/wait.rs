//! Waits for the end of an operation of the cluster, with a progress bar.
//!
//! The cluster carries out the operation by itself: when the caller stops waiting, the operation continues.

use std::time::Duration;

use anyhow::bail;
use chronicle_client::v1;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::calls::ClusterCalls;

/// Interval between two status calls.
const POLL: Duration = Duration::from_millis(500);

/// Polls until the operation has ended and returns its final state. `patience` bounds the time without a response from
/// the cluster, not the duration of the operation.
///
/// # Errors
/// No response for `patience`, or the cluster's list of operations no longer contains the operation.
pub(super) async fn until_ended(
    calls: &ClusterCalls,
    begun: v1::Operation,
    patience: Duration,
) -> anyhow::Result<v1::Operation> {
    let bar = ProgressBar::new(u64::from(begun.total));
    bar.set_style(ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} partitions {elapsed} {msg}")?);
    bar.set_prefix(begun.kind.clone());
    let mut last = begun;
    let mut answered = Instant::now();
    while last.state == "running" {
        bar.set_length(u64::from(last.total));
        bar.set_position(u64::from(last.total.saturating_sub(last.remaining)));
        bar.set_message(last.reason.clone());
        tokio::time::sleep(POLL).await;
        let answer = match calls.status().await {
            Ok(answer) => answer,
            Err(error) if answered.elapsed() < patience => {
                bar.set_message(format!("no answer: {error}"));
                continue;
            }
            Err(error) => {
                bar.finish_and_clear();
                return Err(error.context(format!(
                    "stopped waiting for operation {} ({}): it continues, see chronicle cluster status",
                    last.id, last.kind
                )));
            }
        };
        answered = Instant::now();
        let Some(now) = answer.operations.into_iter().find(|operation| operation.id == last.id) else {
            bar.finish_and_clear();
            bail!("operation {} ({}): is no longer in the cluster's list of operations", last.id, last.kind);
        };
        last = now;
    }
    bar.finish_and_clear();
    Ok(last)
}

/// Returns why an operation ended in another state than `done`.
pub(super) fn describe_failure(ended: &v1::Operation) -> String {
    let reason = if ended.reason.is_empty() { "no reason given" } else { ended.reason.as_str() };
    format!("{} {}: {reason}", ended.kind, ended.state)
}
