//! `members`: the nodes of a cluster, by their own word where they can be asked, and by what the operator reported last where not.

use std::collections::BTreeMap;
use std::io::Write;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::access::Access;
use super::error::Failure;
use super::output::{Format, age, print, table};
use super::status::Volume;
use crate::api::{ChronicleCluster, MemberRole, MemberState};
use crate::build::{config_files, ordinal_of, pod_name, validate};
use crate::plan::ClusterView;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct MembersArgs {
    /// Name of the ChronicleCluster.
    name: String,
    /// Form of the answer.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: Format,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Members {
    pub(super) namespace: String,
    pub(super) cluster: String,
    /// A majority of the nodes said so just now; otherwise it is what the operator reported last.
    pub(super) live: bool,
    /// Why the nodes were not asked, or did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unreached: Option<String>,
    pub(super) members: Vec<Member>,
}

/// One node.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    /// Its pod, and its own name.
    pub(super) name: String,
    /// UUID; empty: a pod that is no member.
    pub(super) node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<MemberRole>,
    /// It leads the controller group.
    pub(super) leader: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<MemberState>,
    /// The leader hears from it.
    pub(super) alive: bool,
    /// `Ready`, `NotReady`, `Terminating`, `Missing`.
    pub(super) pod: String,
    /// When the pod was last seen ready, seconds since the Unix epoch; absent: it is now, or that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_ready_s: Option<i64>,
    /// Machine of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) machine: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) zone: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<Volume>,
    /// What it makes of its configuration file, where it says that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) configuration: Option<Configuration>,
}

/// What a node makes of its configuration file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Configuration {
    /// It has taken the file that the spec comes to.
    pub(super) current: bool,
    /// BLAKE3 digest of the newest file that it took.
    pub(super) file_digest: String,
    /// Fields that it takes up when it is restarted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) restart_fields: Vec<String>,
    /// Why it does not take the file as it is now; empty: it does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) error: String,
}

#[expect(clippy::disallowed_methods, reason = "shows ages on this machine")]
pub(super) async fn run(access: &Access, args: &MembersArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let members = gather(access, &args.name).await?;
    print(out, args.output, &members, |wide| text(&members, wide, Timestamp::now()))
}

pub(super) async fn gather(access: &Access, name: &str) -> Result<Members, Failure> {
    let cluster = access.cluster(name).await?;
    let (pods, claims) = (
        access.pods(name).await?,
        match access.claims(name).await {
            Err(Failure::Forbidden { .. }) => BTreeMap::new(),
            claims => claims?,
        },
    );
    let view = match access.target(&cluster).await {
        Ok(target) => access.nodes(name).observe(&target).await.map_err(Failure::from),
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
    Ok(Members {
        namespace: access.namespace.clone(),
        cluster: name.to_owned(),
        live: view.is_ok(),
        unreached: view.err().map(|failure| failure.to_string()),
        members,
    })
}

fn of_view(view: &ClusterView, cluster: &ChronicleCluster) -> Vec<Member> {
    let size = cluster.status.as_ref().and_then(|status| status.size).unwrap_or(cluster.spec.replicas);
    let files = validate(cluster, size.max(1), true).map(|valid| config_files(&valid)).unwrap_or_default();
    let configuration = |known: &crate::plan::NodeConfiguration| Configuration {
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

/// The table, and where it comes from.
pub(super) fn text(members: &Members, wide: bool, now: Timestamp) -> String {
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
        None => "Asked the nodes just now; SEEN of one that is not alive is when its pod was last ready.\n".to_owned(),
        Some(why) => format!("As the operator reported last, because: {why}\n"),
    };
    let remarks: String = members.members.iter().filter_map(remark).map(|remark| format!("{remark}\n")).collect();
    format!("{}{remarks}{from}", table(&head, &rows))
}

/// What a node makes of its configuration file, when that is not what everybody hopes.
fn remark(member: &Member) -> Option<String> {
    let (name, known) = (&member.name, member.configuration.as_ref()?);
    if !known.error.is_empty() {
        return Some(format!("{name} refuses its configuration file and goes on with what it had: {}", known.error));
    }
    if !known.current {
        return Some(format!("{name} has not taken the configuration file that the spec comes to yet."));
    }
    let fields = known.restart_fields.join(", ");
    (!fields.is_empty()).then(|| format!("{name} takes up {fields} when it is restarted."))
}
