//! `status`: shows the status of clusters and their volumes.

use std::io::Write;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use super::error::PluginError;
use super::output::{OutputFormat, age, bytes, pairs, print, span, table};
use super::session::Session;
use crate::api::{ChronicleCluster, ClusterStatus, ConditionType, OperationStatus, condition_of};
use crate::build::claim_name;
use crate::quantity;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct StatusArgs {
    /// Name of a ChronicleCluster. Default: list all clusters of the namespace.
    name: Option<String>,
    /// List the clusters of all namespaces.
    #[arg(long, short = 'A', conflicts_with = "name")]
    all_namespaces: bool,
    /// Output format.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: OutputFormat,
}

/// A volume of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Volume {
    /// Name of the claim.
    pub(super) claim: String,
    /// `Bound`, `Pending` or `Lost`.
    pub(super) phase: String,
    /// Requested bytes.
    pub(super) requested_bytes: u64,
    /// Actual bytes; 0: not known.
    pub(super) capacity_bytes: u64,
    /// StorageClass.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) storage_class: String,
}

impl Volume {
    pub(super) fn of(claim: &PersistentVolumeClaim) -> Self {
        let spec = claim.spec.clone().unwrap_or_default();
        let status = claim.status.clone().unwrap_or_default();
        let size =
            |sizes: Option<std::collections::BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
                sizes.and_then(|sizes: std::collections::BTreeMap<String, _>| quantity::bytes(&sizes.get("storage")?.0))
            };
        Self {
            claim: claim.name_any(),
            phase: status.phase.unwrap_or_default(),
            requested_bytes: size(spec.resources.and_then(|resources| resources.requests)).unwrap_or(0),
            capacity_bytes: size(status.capacity).unwrap_or(0),
            storage_class: spec.storage_class_name.unwrap_or_default(),
        }
    }

    /// Formats the volume for a table cell.
    pub(super) fn text(&self) -> String {
        let size = if self.capacity_bytes > 0 { self.capacity_bytes } else { self.requested_bytes };
        let grows = self.capacity_bytes > 0 && self.capacity_bytes < self.requested_bytes;
        let grows = if grows { format!(", growing to {}", bytes(self.requested_bytes)) } else { String::new() };
        match self.phase.as_str() {
            "Bound" => format!("{}{grows}", bytes(size)),
            phase => format!("{} ({phase})", bytes(size)),
        }
    }
}

/// Output of the command for one cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterSummary {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) image: String,
    pub(super) replicas: i32,
    /// Status as written by the operator.
    pub(super) status: ClusterStatus,
    /// Volumes by ordinal; `None`: not allowed to list them.
    pub(super) volumes: Option<Vec<Volume>>,
    /// Whether the operator has not processed the latest spec.
    pub(super) unseen: bool,
    #[serde(skip)]
    age: String,
}

impl ClusterSummary {
    pub(super) fn of(cluster: &ChronicleCluster, volumes: Option<Vec<Volume>>, now: Timestamp) -> Self {
        let status = cluster.status.clone().unwrap_or_default();
        let created = cluster.metadata.creation_timestamp.as_ref().map(|time| age(time.0, now));
        Self {
            namespace: cluster.namespace().unwrap_or_default(),
            name: cluster.name_any(),
            image: cluster.spec.image.clone(),
            replicas: cluster.spec.replicas,
            unseen: status.observed_generation != cluster.metadata.generation,
            status,
            volumes,
            age: created.unwrap_or_default(),
        }
    }

    fn holds(&self, condition: ConditionType) -> String {
        condition_of(&self.status.conditions, condition).map_or_else(|| "Unknown".into(), |known| known.status.clone())
    }

    fn capacity(&self) -> u64 {
        self.volumes.iter().flatten().map(|volume| volume.capacity_bytes).sum()
    }

    fn versions(&self) -> String {
        self.status.versions.as_ref().map(|versions| versions.running.join(", ")).unwrap_or_default()
    }
}

pub(super) async fn run(session: &Session, args: &StatusArgs, out: &mut dyn Write) -> Result<(), PluginError> {
    #[expect(clippy::disallowed_methods, reason = "shows ages on this machine")]
    let now = Timestamp::now();
    let Some(name) = &args.name else {
        let mut views = Vec::new();
        for cluster in session.clusters(args.all_namespaces).await? {
            let within = session.within(cluster.namespace().unwrap_or_default());
            views.push(ClusterSummary::of(&cluster, volumes(&within, &cluster.name_any()).await?, now));
        }
        return print(out, args.output, &views, |wide| match views.as_slice() {
            [] if args.all_namespaces => "No ChronicleClusters found.\n".into(),
            [] => format!("No ChronicleClusters found in namespace {}.\n", session.namespace),
            views => list(views, args.all_namespaces, wide),
        });
    };
    let cluster = session.cluster(name).await?;
    let view = ClusterSummary::of(&cluster, volumes(session, name).await?, now);
    print(out, args.output, &view, |wide| text(&view, wide, now))
}

/// Returns the volumes; `None`: not allowed to list them.
pub(super) async fn volumes(session: &Session, cluster: &str) -> Result<Option<Vec<Volume>>, PluginError> {
    match session.claims(cluster).await {
        Ok(claims) => Ok(Some(claims.values().map(Volume::of).collect())),
        Err(PluginError::Forbidden { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Formats clusters as a table.
pub(super) fn list(views: &[ClusterSummary], namespaces: bool, wide: bool) -> String {
    let mut head = vec![
        "NAME",
        "NODES",
        "READY",
        "AVAILABLE",
        "QUORATE",
        "UPTODATE",
        "DEGRADED",
        "OPERATION",
        "LEADER",
        "VERSION",
        "CAPACITY",
        "AGE",
    ];
    if namespaces {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["CLUSTER-ID", "IMAGE", "ENDPOINT"]);
    }
    let row = |view: &ClusterSummary| {
        let status = &view.status;
        let mut row = vec![
            view.name.clone(),
            format!("{}/{}", status.size.unwrap_or(0), view.replicas),
            status.ready_replicas.to_string(),
            view.holds(ConditionType::Available),
            view.holds(ConditionType::Quorate),
            view.holds(ConditionType::UpToDate),
            view.holds(ConditionType::Degraded),
            status
                .operation
                .as_ref()
                .map(|operation| format!("{:?} {}", operation.kind, operation.target))
                .unwrap_or_default(),
            status.leader.clone().unwrap_or_default(),
            view.versions(),
            match &view.volumes {
                Some(_) => bytes(view.capacity()),
                None => "?".into(),
            },
            view.age.clone(),
        ];
        if namespaces {
            row.insert(0, view.namespace.clone());
        }
        if wide {
            row.extend([
                status.cluster_id.clone().unwrap_or_default(),
                view.image.clone(),
                status.endpoint.clone().unwrap_or_default(),
            ]);
        }
        row
    };
    table(&head, &views.iter().map(row).collect::<Vec<_>>())
}

/// Describes an operation.
pub(super) fn operation(operation: &OperationStatus, now: Timestamp) -> String {
    let target = if operation.target.is_empty() { "all nodes" } else { &operation.target };
    let since = operation.age_seconds(now).map(|age| format!(", for {}", span(age))).unwrap_or_default();
    format!("{:?} of {target}, at step {:?}{since}", operation.kind, operation.step)
}

/// Formats one cluster in full.
pub(super) fn text(view: &ClusterSummary, wide: bool, now: Timestamp) -> String {
    let status = &view.status;
    let quorum = status.quorum.as_ref().map(|quorum| {
        format!(
            "{} of {} voters alive, {} needed; tolerates {} more failures",
            quorum.healthy, quorum.voters, quorum.needed, quorum.fault_tolerance
        )
    });
    let volumes = match &view.volumes {
        None => "not allowed to list persistentvolumeclaims".to_owned(),
        Some(volumes) => format!("{} in {} volumes", bytes(view.capacity()), volumes.len()),
    };
    let ends = status.certificates.as_ref().and_then(|certificates| certificates.not_after_seconds);
    let seen = if view.unseen { " (the operator has not processed the latest spec yet)" } else { "" };
    let mut text = pairs(&[
        ("Name", format!("{}/{}{seen}", view.namespace, view.name)),
        ("Image", view.image.clone()),
        ("Versions", view.versions()),
        ("Cluster id", status.cluster_id.clone().unwrap_or_default()),
        ("Endpoint", status.endpoint.clone().unwrap_or_default()),
        (
            "Nodes",
            format!(
                "{} desired, {} in the cluster, {} pods, {} ready",
                view.replicas,
                status.size.unwrap_or(0),
                status.replicas,
                status.ready_replicas
            ),
        ),
        ("Leader", status.leader.clone().unwrap_or_else(|| "none that responds".into())),
        ("Quorum", quorum.unwrap_or_default()),
        ("Capacity", volumes),
        (
            "Certificates",
            ends.map(|ends| format!("the first expires in {}", span(ends - now.as_second()))).unwrap_or_default(),
        ),
        ("Operation", status.operation.as_ref().map_or_else(|| "none".into(), |under_way| operation(under_way, now))),
    ]);
    let row = |condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        vec![
            condition.type_.clone(),
            condition.status.clone(),
            age(condition.last_transition_time.0, now),
            condition.reason.clone(),
            condition.message.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = status.conditions.iter().map(row).collect();
    text.push_str(&format!("\n{}", table(&["CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"], &rows)));
    let mut head = vec!["MEMBER", "ROLE", "STATE", "ALIVE", "VERSION", "ZONE", "VOLUME"];
    if wide {
        head.push("NODE-ID");
    }
    let row = |member: &crate::api::MemberStatus| {
        let claim = crate::build::ordinal_of(&view.name, &member.name).map(|ordinal| claim_name(&view.name, ordinal));
        let volume = view.volumes.iter().flatten().find(|volume| Some(&volume.claim) == claim.as_ref());
        let mut row = vec![
            member.name.clone(),
            format!("{:?}", member.role),
            format!("{:?}", member.state),
            if member.alive { "yes" } else { "no" }.into(),
            member.version.clone(),
            member.zone.clone(),
            volume.map(Volume::text).unwrap_or_default(),
        ];
        if wide {
            row.push(member.node_id.clone());
        }
        row
    };
    let rows: Vec<Vec<String>> = status.members.iter().map(row).collect();
    text.push_str(&format!("\n{}", table(&head, &rows)));
    text
}
