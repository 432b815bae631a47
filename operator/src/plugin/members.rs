//! `members`: lists the nodes of a cluster, as reported by the nodes if they can be reached, and from the last status otherwise.

use std::collections::BTreeMap;
use std::io::Write;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::error::PluginError;
use super::output::{OutputFormat, age, print, table};
use super::session::Session;
use super::status::Volume;
use crate::api::{ChronicleCluster, MemberRole, MemberState};
use crate::build::{config_files, ordinal_of, pod_name, validate};
use crate::plan::ClusterView;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct MembersArgs {
    /// Name of the ChronicleCluster.
    name: String,
    /// Output format.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: OutputFormat,
}

/// Output of the command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MemberList {
    pub(super) namespace: String,
    pub(super) cluster: String,
    /// Whether a majority of the voters reported this now; otherwise it is from the last status.
    pub(super) live: bool,
    /// Why the nodes were not queried, or did not respond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unreached: Option<String>,
    pub(super) members: Vec<Member>,
}

/// One node.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    /// Name of the node and of its pod.
    pub(super) name: String,
    /// UUID; empty: a pod that is not a member.
    pub(super) node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<MemberRole>,
    /// Whether it leads the controller group.
    pub(super) leader: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<MemberState>,
    /// Whether the leader receives heartbeats from it.
    pub(super) alive: bool,
    /// `Ready`, `NotReady`, `Terminating`, `Missing`.
    pub(super) pod: String,
    /// When the pod was last ready, in seconds since the Unix epoch; absent: it is ready now, or that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_ready_s: Option<i64>,
    /// Machine (Kubernetes node) of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) machine: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) zone: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<Volume>,
    /// State of its configuration file, if its version reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) configuration: Option<ConfigurationState>,
}

/// State of the configuration file of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigurationState {
    /// Whether it has loaded the current file.
    pub(super) current: bool,
    /// BLAKE3 digest of the last file that it loaded.
    pub(super) file_digest: String,
    /// Fields that need a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) restart_fields: Vec<String>,
    /// Why it rejects the current file; empty if it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) error: String,
}

#[expect(clippy::disallowed_methods, reason = "shows ages on this machine")]
pub(super) async fn run(session: &Session, args: &MembersArgs, out: &mut dyn Write) -> Result<(), PluginError> {
    let members = gather(session, &args.name).await?;
    print(out, args.output, &members, |wide| text(&members, wide, Timestamp::now()))
}

pub(super) async fn gather(session: &Session, name: &str) -> Result<MemberList, PluginError> {
    let cluster = session.cluster(name).await?;
    let (pods, claims) = (
        session.pods(name).await?,
        match session.claims(name).await {
            Err(PluginError::Forbidden { .. }) => BTreeMap::new(),
            claims => claims?,
        },
    );
    let view = match session.target(&cluster).await {
        Ok(target) => session.nodes(name).observe(&target).await.map_err(PluginError::from),
        Err(failure) => Err(failure),
    };
    let known = match &view {
        Ok(view) => of_view(view, &cluster),
        Err(_) => of_status(&cluster),
    };
    let mut members: Vec<Member> = known.into_iter().map(|member| with_objects(name, member, &pods, &claims)).collect();
    for ordinal in pods.keys() {
        let pod = pod_name(name, *ordinal);
        if !members.iter().any(|member| member.name == pod) {
            members.push(with_objects(name, Member { name: pod, ..Member::default() }, &pods, &claims));
        }
    }
    members.sort_by_key(|member| (ordinal_of(name, &member.name).unwrap_or(i32::MAX), !member.alive));
    Ok(MemberList {
        namespace: session.namespace.clone(),
        cluster: name.to_owned(),
        live: view.is_ok(),
        unreached: view.err().map(|failure| failure.to_string()),
        members,
    })
}

fn of_view(view: &ClusterView, cluster: &ChronicleCluster) -> Vec<Member> {
    let size = cluster.status.as_ref().and_then(|status| status.size).unwrap_or(cluster.spec.replicas);
    let files = validate(cluster, size.max(1), true).map(|valid| config_files(&valid)).unwrap_or_default();
    let configuration = |known: &crate::plan::NodeConfiguration| ConfigurationState {
        current: files.contains(&known.file_digest),
        file_digest: known.file_digest.clone(),
        restart_fields: known.restart_fields.clone(),
        error: known.error.clone(),
    };
    let member = |node: &crate::plan::NodeView| Member {
        name: node.name.clone(),
        node_id: node.node_id.clone(),
        role: Some(if node.voter { MemberRole::Voter } else { MemberRole::Learner }),
        leader: view.leader.as_ref() == Some(&node.node_id),
        state: Some(node.state),
        alive: node.alive,
        version: node.version.clone(),
        zone: node.zone.clone(),
        configuration: node.configuration.as_ref().map(configuration),
        ..Member::default()
    };
    view.nodes.iter().map(member).collect()
}

fn of_status(cluster: &ChronicleCluster) -> Vec<Member> {
    let status = cluster.status.clone().unwrap_or_default();
    let leader = status.leader;
    let member = |member: crate::api::MemberStatus| Member {
        leader: leader.as_ref() == Some(&member.name),
        name: member.name,
        node_id: member.node_id,
        role: Some(member.role),
        state: Some(member.state),
        alive: member.alive,
        version: member.version,
        zone: member.zone,
        ..Member::default()
    };
    status.members.into_iter().map(member).collect()
}

fn with_objects(
    cluster: &str,
    member: Member,
    pods: &BTreeMap<i32, Pod>,
    claims: &BTreeMap<i32, PersistentVolumeClaim>,
) -> Member {
    let ordinal = ordinal_of(cluster, &member.name);
    let pod = ordinal.and_then(|ordinal| pods.get(&ordinal));
    let conditions = pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_some_and(|condition| condition.status == "True");
    let state = match pod {
        None => "Missing",
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => "Terminating",
        Some(_) if is_ready => "Ready",
        Some(_) => "NotReady",
    };
    let since = ready.filter(|_| !is_ready).and_then(|condition| condition.last_transition_time.as_ref());
    Member {
        pod: state.to_owned(),
        last_ready_s: since.map(|time| time.0.as_second()),
        machine: pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone()).unwrap_or_default(),
        volume: ordinal.and_then(|ordinal| claims.get(&ordinal)).map(Volume::of),
        ..member
    }
}

/// Formats the table and the source of its data.
pub(super) fn text(members: &MemberList, wide: bool, now: Timestamp) -> String {
    let mut head = vec!["POD", "NODE-ID", "ROLE", "STATE", "ALIVE", "SEEN", "POD-STATE", "ZONE", "VOLUME"];
    if wide {
        head.extend(["VERSION", "MACHINE", "CLAIM"]);
    }
    let row = |member: &Member| {
        let role = match (member.role, member.leader) {
            (None, _) => "no member".to_owned(),
            (Some(MemberRole::Voter), true) => "Voter, leads".to_owned(),
            (Some(role), _) => format!("{role:?}"),
        };
        let seen = match (member.alive && members.live, member.last_ready_s) {
            (true, _) => "now".to_owned(),
            (false, Some(since)) => format!("{} ago", age(Timestamp::from_second(since).unwrap_or(now), now)),
            (false, None) => String::new(),
        };
        let id: String = if wide { member.node_id.clone() } else { member.node_id.chars().take(8).collect() };
        let mut row = vec![
            member.name.clone(),
            id,
            role,
            member.state.map(|state| format!("{state:?}")).unwrap_or_default(),
            if member.alive { "yes" } else { "no" }.into(),
            seen,
            member.pod.clone(),
            member.zone.clone(),
            member.volume.as_ref().map(Volume::text).unwrap_or_default(),
        ];
        if wide {
            let claim = member.volume.as_ref().map(|volume| volume.claim.clone()).unwrap_or_default();
            row.extend([member.version.clone(), member.machine.clone(), claim]);
        }
        row
    };
    let rows: Vec<Vec<String>> = members.members.iter().map(row).collect();
    let from = match &members.unreached {
        None => {
            "Queried the nodes just now. SEEN of a node that is not alive is when its pod was last ready.\n".to_owned()
        }
        Some(why) => format!("From the last status that the operator reported, because: {why}\n"),
    };
    let remarks: String = members.members.iter().filter_map(remark).map(|remark| format!("{remark}\n")).collect();
    format!("{}{remarks}{from}", table(&head, &rows))
}

/// Returns a remark if a node has not loaded the current configuration file completely.
fn remark(member: &Member) -> Option<String> {
    let (name, known) = (&member.name, member.configuration.as_ref()?);
    if !known.error.is_empty() {
        return Some(format!(
            "{name} rejects its configuration file and keeps its previous configuration: {}",
            known.error
        ));
    }
    if !known.current {
        return Some(format!("{name} has not loaded the current configuration file yet."));
    }
    let fields = known.restart_fields.join(", ");
    (!fields.is_empty()).then(|| format!("{name} needs a restart to apply {fields}."))
}
