//! `logs`: prints the logs of all pods of a cluster in the order of their timestamps, each line with its pod.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use futures::AsyncBufRead;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, LogParams};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::duration::duration;
use super::error::PluginError;
use super::log_lines::{LogLine, LogLines};
use super::session::Session;
use crate::build::{ordinal_of, pod_name};

/// The container of a node.
const CONTAINER: &str = "chronicle";
/// With `--follow`: capacity of the queue of lines to print. A line has at most 256 KiB.
const WAITING_MAX: usize = 64;
/// With `--follow`: interval of checks for new pods, and of retries for a log that has ended.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, clap::Args)]
pub(super) struct LogsArgs {
    /// Name of the ChronicleCluster.
    pub(super) name: String,
    /// Only the log of this pod.
    pub(super) pod: Option<String>,
    /// Follow the logs, including those of recreated pods.
    #[arg(long, short = 'f')]
    pub(super) follow: bool,
    /// Only lines newer than this, such as 10m.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(super) since: Option<Duration>,
    /// Only this many of the newest lines of each pod.
    #[arg(long, value_name = "LINES")]
    pub(super) tail: Option<u32>,
    /// Logs of the previous, terminated containers.
    #[arg(long, short = 'p', conflicts_with = "follow")]
    pub(super) previous: bool,
    /// Print the timestamp of each line.
    #[arg(long)]
    pub(super) timestamps: bool,
}

impl LogsArgs {
    fn params(&self) -> LogParams {
        LogParams {
            container: Some(CONTAINER.into()),
            follow: self.follow,
            previous: self.previous,
            since_seconds: self.since.map(|since| since.as_secs().max(1).cast_signed()),
            tail_lines: self.tail.map(i64::from),
            timestamps: true,
            ..LogParams::default()
        }
    }
}

pub(super) async fn run(session: &Session, args: &LogsArgs, out: &mut (dyn Write + Send)) -> Result<(), PluginError> {
    session.cluster(&args.name).await?;
    let pods: Vec<String> =
        session.pods(&args.name).await?.keys().map(|ordinal| pod_name(&args.name, *ordinal)).collect();
    let chosen: Vec<String> = match &args.pod {
        None => pods,
        Some(pod) if pods.contains(pod) => vec![pod.clone()],
        // The pod may be created later.
        Some(pod) if args.follow && ordinal_of(&args.name, pod).is_some() => vec![pod.clone()],
        Some(pod) => {
            return Err(PluginError::NoPod { pod: pod.clone(), cluster: args.name.clone(), known: pods });
        }
    };
    let width = chosen.iter().map(String::len).max().unwrap_or(0);
    match args.follow {
        true => follow(session, args, chosen, width, out).await,
        false => merged(session, args, &chosen, width, out).await,
    }
}

fn write(
    out: &mut (dyn Write + Send),
    args: &LogsArgs,
    width: usize,
    pod: &str,
    line: &LogLine,
) -> Result<(), PluginError> {
    let at = if args.timestamps { format!("{} ", line.at) } else { String::new() };
    writeln!(out, "[{pod:<width$}] {at}{}", line.text).map_err(PluginError::io("standard output"))
}

/// Merges the logs. Keeps one line of each in memory.
async fn merged(
    session: &Session,
    args: &LogsArgs,
    chosen: &[String],
    width: usize,
    out: &mut (dyn Write + Send),
) -> Result<(), PluginError> {
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let mut logs = Vec::new();
    let mut refused = None;
    for pod in chosen {
        match pods.log_stream(pod, &args.params()).await {
            Ok(stream) => {
                let mut lines = LogLines::new(stream);
                let first = next(&mut lines, pod).await?;
                logs.push((pod, lines, first));
            }
            Err(error) => {
                let failure = PluginError::kube("get", &format!("pods/log of {pod}"), Some(&session.namespace), error);
                if logs.is_empty() && matches!(failure, PluginError::Forbidden { .. }) {
                    return Err(failure);
                }
                // Continue with the logs of the other pods.
                eprintln!("kubectl chronicle: {failure}");
                refused = Some(failure);
            }
        }
    }
    if let Some(failure) = refused.filter(|_| logs.is_empty()) {
        return Err(failure);
    }
    let earliest = |logs: &[(_, _, Option<LogLine>)]| {
        let heads = logs.iter().enumerate().filter_map(|(at, (_, _, head))| Some((head.as_ref()?.at, at)));
        heads.min().map(|(_, at)| at)
    };
    while let Some(at) = earliest(&logs) {
        let (pod, lines, head) = &mut logs[at];
        if let Some(line) = head.take() {
            write(out, args, width, pod, &line)?;
        }
        *head = next(lines, pod).await?;
    }
    out.flush().map_err(PluginError::io("standard output"))
}

async fn next<R: AsyncBufRead + Unpin>(lines: &mut LogLines<R>, pod: &str) -> Result<Option<LogLine>, PluginError> {
    lines.next().await.map_err(PluginError::io(format!("log of {pod}")))
}

/// Prints the logs as lines arrive, until the reader closes the pipe or the process is interrupted.
async fn follow(
    session: &Session,
    args: &LogsArgs,
    chosen: Vec<String>,
    width: usize,
    out: &mut (dyn Write + Send),
) -> Result<(), PluginError> {
    let (sender, mut lines) = mpsc::channel::<(String, LogLine)>(WAITING_MAX);
    // Dropping the set cancels its tasks.
    let mut followers = JoinSet::new();
    let mut followed: BTreeSet<String> = BTreeSet::new();
    let mut pods = chosen;
    let mut look = tokio::time::interval(RETRY);
    loop {
        for pod in pods.drain(..) {
            if followed.insert(pod.clone()) {
                let (client, namespace) = (session.client.clone(), session.namespace.clone());
                followers.spawn(follow_pod(client, namespace, pod, args.params(), sender.clone()));
            }
        }
        // Both branches are cancel-safe.
        tokio::select! {
            Some((pod, line)) = lines.recv() => {
                write(out, args, width, &pod, &line)?;
                while let Ok((pod, line)) = lines.try_recv() {
                    write(out, args, width, &pod, &line)?;
                }
                out.flush().map_err(PluginError::io("standard output"))?;
            }
            Some(ended) = followers.join_next() => {
                if let Ok(Err(failure)) = ended {
                    return Err(failure);
                }
            }
            _ = look.tick(), if args.pod.is_none() => {
                // A failed check is followed by another.
                if let Ok(known) = session.pods(&args.name).await {
                    pods = known.keys().map(|ordinal| pod_name(&args.name, *ordinal)).collect();
                }
            }
        }
    }
}

/// Follows the log of one pod across restarts: after its end, it continues with lines newer than the last one.
async fn follow_pod(
    client: Client,
    namespace: String,
    pod: String,
    mut params: LogParams,
    to: mpsc::Sender<(String, LogLine)>,
) -> Result<(), PluginError> {
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let mut last: Option<Timestamp> = None;
    loop {
        match pods.log_stream(&pod, &params).await {
            Ok(stream) => {
                let mut lines = LogLines::new(stream);
                // The API has a resolution of one second, so lines that were printed already come first.
                let mut printed = last;
                while let Ok(Some(line)) = lines.next().await {
                    if printed.is_some_and(|printed| line.at <= printed) {
                        continue;
                    }
                    printed = None;
                    last = Some(line.at);
                    if to.send((pod.clone(), line)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                let error = kube::Error::Api(status);
                return Err(PluginError::kube("get", &format!("pods/log of {pod}"), Some(&namespace), error));
            }
            // The pod does not exist, or its container is not running yet.
            Err(_) => {}
        }
        if last.is_some() {
            (params.since_time, params.since_seconds, params.tail_lines) = (last, None, None);
        }
        sleep(RETRY).await;
    }
}
