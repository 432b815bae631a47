//! `plan`: shows what the next reconcile would do, and what it waits for.

use std::io::Write;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Client, ResourceExt};
use serde::Serialize;

use super::dry_run::{DryRun, PlannedChange, dry_run};
use super::error::PluginError;
use super::output::{OutputFormat, print};
use super::session::Session;
use crate::admin::Admin;
use crate::api::{ChronicleCluster, ConditionType, OperationStatus, condition_of};
use crate::build::{Settings, config_map_name};
use crate::controller::{Context, ReconcileError};
use crate::telemetry::Metrics;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct PlanArgs {
    /// Name of the ChronicleCluster.
    name: String,
    /// Output format.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: OutputFormat,
    /// Namespace that the operator runs in. It is part of the NetworkPolicy that the operator creates.
    #[arg(long, default_value = "chronicle-system", value_name = "NAMESPACE")]
    operator_namespace: String,
    /// DNS domain of the Kubernetes cluster, as configured for the operator.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    cluster_domain: String,
}

/// Source of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    /// The nodes were queried now.
    Nodes,
    /// No node is running or can be reached, neither from here nor by the operator.
    #[serde(rename = "nobody")]
    NoNode,
    /// The last status of the operator.
    Status,
}

/// Output of the command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    pub(super) namespace: String,
    pub(super) cluster: String,
    pub(super) source: Source,
    /// Why the nodes were not queried, or did not respond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unreached: Option<String>,
    /// Reads that were not allowed; what depends on them is missing in the plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) denied: Vec<String>,
    /// Changes, by reconcile.
    pub(super) reconciles: Vec<Vec<PlannedChange>>,
    /// Why the last reconcile would fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fails: Option<String>,
    /// Operation in progress after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operation: Option<OperationStatus>,
    /// Conditions after that.
    pub(super) conditions: Vec<Condition>,
    /// Whether the operator has not processed the latest spec.
    pub(super) unseen: bool,
}

pub(super) async fn run(session: &Session, args: &PlanArgs, out: &mut dyn Write) -> Result<(), PluginError> {
    let settings = Settings {
        cluster_domain: args.cluster_domain.clone(),
        operator_namespace: args.operator_namespace.clone(),
        ..Settings::default()
    };
    let new_context = |client: Client, admin: Arc<dyn Admin>| {
        Context::new(client, admin, settings, Metrics::new(), "kubectl-chronicle")
    };
    let plan = make(session, &args.name, new_context).await?;
    print(out, args.output, &plan, |_| text(&plan))
}

/// Makes the plan. `context` creates the context of the reconciler.
pub(super) async fn make(
    session: &Session,
    name: &str,
    context: impl FnOnce(Client, Arc<dyn Admin>) -> Context,
) -> Result<Plan, PluginError> {
    let cluster = session.cluster(name).await?;
    let outcome = dry_run(session.client.clone(), session.nodes(name), cluster.clone(), context).await;
    Ok(from_dry_run(&session.namespace, cluster, outcome))
}

/// Falls back to the last status if the dry run could not read what the operator reads.
fn from_dry_run(namespace: &str, cluster: ChronicleCluster, outcome: DryRun) -> Plan {
    let status = cluster.status.clone().unwrap_or_default();
    let seen =
        |condition: ConditionType| condition_of(&status.conditions, condition).map(|known| known.status.as_str());
    let not_allowed = match &outcome.failed {
        Some(ReconcileError::Kube { action, source: kube::Error::Api(answer) }) if answer.is_forbidden() => {
            Some(format!("you are not allowed to {action} in namespace {namespace}"))
        }
        _ => None,
    };
    // The dry run is valid without the nodes only if the operator cannot reach them either.
    let operator_reaches = seen(ConditionType::Quorate).is_some_and(|status| status != "Unknown");
    let blind = not_allowed.clone().or_else(|| outcome.unreached.clone().filter(|_| operator_reaches));
    let unseen = status.observed_generation != cluster.metadata.generation;
    let common = Plan {
        namespace: namespace.to_owned(),
        cluster: cluster.name_any(),
        source: Source::Status,
        unreached: not_allowed.or_else(|| outcome.unreached.clone()),
        denied: outcome.denied.into_iter().collect(),
        reconciles: Vec::new(),
        fails: None,
        operation: status.operation.clone(),
        conditions: status.conditions.clone(),
        unseen,
    };
    if blind.is_some() {
        return common;
    }
    let after = outcome.cluster.status.unwrap_or_default();
    let mut reconciles = outcome.reconciles;
    reconciles.iter_mut().for_each(|changes| mark_live_changes(changes, &config_map_name(&common.cluster)));
    Plan {
        // If there is nothing to write, the operator has processed it concurrently.
        unseen: common.unseen && !reconciles.is_empty(),
        source: if outcome.reached { Source::Nodes } else { Source::NoNode },
        reconciles,
        fails: outcome.failed.map(|error| error.to_string()),
        operation: after.operation,
        conditions: after.conditions,
        ..common
    }
}

/// A change of the configuration file without one of the pod template consists of live fields only.
fn mark_live_changes(changes: &mut [PlannedChange], file: &str) {
    if changes.iter().any(|change| change.resource == "statefulsets") {
        return;
    }
    let live =
        |change: &&mut PlannedChange| change.verb == "change" && change.resource == "configmaps" && change.name == file;
    changes.iter_mut().filter(live).for_each(|change| change.detail.push_str(", takes effect without a restart"));
}

/// Formats the plan for people.
pub(super) fn text(plan: &Plan) -> String {
    let mut text = format!("ChronicleCluster {}/{}\n", plan.namespace, plan.cluster);
    let why = plan.unreached.as_deref().unwrap_or_default();
    text.push_str(&match plan.source {
        Source::Nodes => "Queried the nodes just now.\n".to_owned(),
        Source::NoNode if why.is_empty() => "No node is running, or there is no certificate to connect with.\n".to_owned(),
        Source::NoNode => format!("The nodes do not respond: {why}\n"),
        Source::Status => format!(
            "The nodes were not queried: {why}\nBelow is the last status that the operator reported. Its next step cannot be determined from here.\n"
        ),
    });
    if !plan.denied.is_empty() {
        text.push_str(&format!(
            "You are not allowed to {}: the operator may see more than this plan does.\n",
            plan.denied.join(", ")
        ));
    }
    if plan.unseen {
        text.push_str("The operator has not processed the latest spec yet: is it running?\n");
    }
    text.push('\n');
    match (plan.source, plan.reconciles.as_slice()) {
        (Source::Status, _) => {}
        (_, []) => text.push_str("The next reconcile would change nothing.\n"),
        (_, reconciles) => {
            for (at, changes) in reconciles.iter().enumerate() {
                text.push_str(if at == 0 { "The next reconcile would:\n" } else { "The one after it would:\n" });
                changes.iter().for_each(|change| text.push_str(&format!("  {}\n", line(change))));
            }
        }
    }
    if let Some(why) = &plan.fails {
        text.push_str(&format!("The reconcile would fail: {why}\n"));
    }
    if let Some(operation) = &plan.operation {
        let target = if operation.target.is_empty() { "all nodes" } else { &operation.target };
        text.push_str(&format!(
            "\nRunning operation: {:?} of {target}, at step {:?}.\n",
            operation.kind, operation.step
        ));
    }
    let waits: Vec<String> = plan.conditions.iter().filter_map(wait).collect();
    if !waits.is_empty() {
        text.push_str("\nBlocked or waiting:\n");
        waits.iter().for_each(|wait| text.push_str(&format!("  {wait}\n")));
        text.push_str("What each reason means: docs/operations/operator-conditions.md\n");
    }
    text
}

fn line(change: &PlannedChange) -> String {
    let PlannedChange { verb, resource, name, detail } = change;
    let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    match resource.as_str() {
        "chronicleclusters" => format!("update the ChronicleCluster{detail}"),
        "node" => format!("{verb} node {name}{detail}"),
        resource => format!("{verb} {resource}/{name}{detail}"),
    }
}

/// Formats a condition that is not healthy, or that has a message about a wait.
fn wait(condition: &Condition) -> Option<String> {
    let good = match condition.type_.as_str() {
        "Progressing" => matches!(condition.reason.as_str(), "Settled" | "Stopped") || condition.message.is_empty(),
        "Degraded" => condition.status == "False",
        _ => condition.status == "True",
    };
    (!good).then(|| {
        let message = if condition.message.is_empty() { String::new() } else { format!(": {}", condition.message) };
        format!("{} {} {}{message}", condition.type_, condition.status, condition.reason)
    })
}
