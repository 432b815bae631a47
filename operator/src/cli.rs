//! The command line of the operator. Every flag has an environment variable.

#![expect(clippy::disallowed_methods, reason = "processes without a pod name need different names")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::admin::GrpcAdmin;
use crate::api::crds;
use crate::build::Settings;
use crate::process::{LeaseSettings, RunSettings, run};
use crate::telemetry::Traces;

/// Kubernetes operator for Chronicle clusters, topics and users.
#[derive(Debug, Parser)]
#[command(name = "chronicle-operator", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator until it is stopped.
    Run(RunArgs),
    /// Print the CRDs, for `kubectl apply`.
    Crd,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Human-readable text.
    Text,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Namespaces to watch, separated by commas. Default: all.
    #[arg(long, env = "OPERATOR_NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Namespace that the operator runs in. Its Lease is there, and NetworkPolicies of clusters admit its pods from there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "chronicle-system")]
    namespace: String,
    /// Name of this process in the Lease and in events. Must be unique among the replicas.
    #[arg(long, env = "POD_NAME", default_value_t = format!("chronicle-operator-{:08x}", rand::random::<u32>()))]
    name: String,
    /// DNS domain of the Kubernetes cluster.
    #[arg(long, env = "OPERATOR_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Seconds between the distribution of a new CA and the first certificate that it issues. Every pod must trust the CA by then:
    /// kubelets take up to two minutes (syncFrequency) to update a mounted ConfigMap, and nodes read their files every ten seconds.
    #[arg(long, env = "OPERATOR_TRUST_SETTLES_SECONDS", default_value_t = 150, value_parser = clap::value_parser!(i64).range(10..=86_400))]
    trust_settles_seconds: i64,
    /// Listen address of the health and metrics endpoints.
    #[arg(long, env = "OPERATOR_HEALTH_ADDRESS", default_value = "0.0.0.0:8080")]
    health_address: SocketAddr,
    /// Maximum number of resources of one kind that are reconciled concurrently.
    #[arg(long, env = "OPERATOR_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Whether to elect a leader with a Lease. Required with more than one replica.
    #[arg(long, env = "OPERATOR_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Name of the Lease.
    #[arg(long, env = "OPERATOR_LEASE", default_value = "chronicle-operator")]
    lease: String,
    /// Seconds after the last renewal of the Lease when another replica takes over.
    #[arg(long, env = "OPERATOR_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=600))]
    lease_seconds: u64,
    /// Log filter: a level, or directives such as info,chronicle_operator=debug.
    #[arg(long, env = "OPERATOR_LOG", default_value = "info")]
    log: String,
    /// Format of log lines.
    #[arg(long, env = "OPERATOR_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// The failure, for standard error.
    pub fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Crd => {
                print!("{}", crd_text()?);
                Ok(())
            }
            Command::Run(args) => {
                // kube and the Chronicle client share one TLS provider.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                runtime.block_on(async {
                    let traces = Traces::start(&args.name)?;
                    start_logging(&args, traces.as_ref())?;
                    let ended = args.run().await;
                    if let Some(traces) = traces {
                        traces.shutdown().await;
                    }
                    ended
                })
            }
        }
    }
}

/// Returns the CRDs as one YAML text.
///
/// # Errors
/// Serialisation failed, which does not happen in practice.
pub fn crd_text() -> anyhow::Result<String> {
    let mut text = String::from("# Generated by `chronicle-operator crd`.\n");
    for crd in crds() {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(&crd)?);
    }
    Ok(text)
}

fn start_logging(args: &RunArgs, traces: Option<&Traces>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| anyhow::anyhow!("--log: {}: {error}", args.log))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match args.log_format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    tracing_subscriber::registry().with(traces.map(Traces::layer)).with(lines.with_filter(filter)).try_init()?;
    Ok(())
}

impl RunArgs {
    async fn run(self) -> anyhow::Result<()> {
        let client = Client::try_default().await?;
        let stop = CancellationToken::new();
        let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let signalled = stop.clone();
        let watcher = tokio::spawn(async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
            signalled.cancel();
        });
        let duration = Duration::from_secs(self.lease_seconds);
        let lease = self.leader_election.then(|| LeaseSettings {
            namespace: self.namespace.clone(),
            name: self.lease.clone(),
            identity: self.name.clone(),
            duration,
            renew_deadline: duration * 2 / 3,
            period: duration / 8,
        });
        let settings = RunSettings {
            namespaces: self.namespaces,
            concurrency: self.concurrency,
            health: self.health_address,
            settings: Settings {
                cluster_domain: self.cluster_domain,
                operator_namespace: self.namespace,
                trust_settles_seconds: self.trust_settles_seconds,
            },
            lease,
            instance: self.name,
        };
        let ended = run(client, Arc::new(GrpcAdmin::default()), settings, stop).await;
        watcher.abort();
        ended
    }
}
