//! Dry run of the reconciler of the operator: a client that forwards reads and records writes, and nodes that receive no commands.
//!
//! Invariants:
//! - Only GET requests reach the API server, whatever the reconciler does ([`read_only_client`]).
//! - A change of the ChronicleCluster itself (status, finalizer) is simulated, and the reconciler runs again. The dry run ends at the first
//!   change of another object, since the next step depends on its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use kube::api::Api;
use kube::client::Body;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tower::service_fn;

use super::nodes::NodeAccess;
use crate::admin::{Admin, AdminError, AdminResult, Target};
use crate::api::{ChronicleCluster, ClusterStatus};
use crate::controller::apply::APPLIED;
use crate::controller::cluster::reconcile;
use crate::controller::compare::difference;
use crate::controller::{Context, ReconcileError};
use crate::plan::{CatchUp, ClusterView};

/// Maximum number of reconciles in a dry run.
const RECONCILES_MAX: usize = 8;

/// A change that a reconcile would make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct PlannedChange {
    /// `create`, `change`, `delete`, or a command to the cluster.
    pub(super) verb: String,
    /// Plural name of the kind; `node` for a command to the cluster.
    pub(super) resource: String,
    /// Name of the object or node.
    pub(super) name: String,
    /// Human-readable description of the change.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) detail: String,
}

/// Result of a dry run.
#[derive(Debug)]
pub(super) struct DryRun {
    /// Changes in order, by reconcile.
    pub(super) reconciles: Vec<Vec<PlannedChange>>,
    /// The resource after the last reconcile.
    pub(super) cluster: ChronicleCluster,
    /// Why the last reconcile would fail.
    pub(super) failed: Option<ReconcileError>,
    /// Why the nodes did not respond.
    pub(super) unreached: Option<String>,
    /// Whether the nodes were queried and responded.
    pub(super) reached: bool,
    /// Reads that were not allowed, `VERB RESOURCE`.
    pub(super) denied: BTreeSet<String>,
}

/// What is recorded in a dry run.
#[derive(Default)]
struct Recording {
    changes: Mutex<Vec<PlannedChange>>,
    /// The resource after simulated changes.
    cluster: Mutex<Option<Value>>,
    denied: Mutex<BTreeSet<String>>,
    unreached: Mutex<Option<String>>,
    /// Names of nodes by UUID, from the last view of the cluster.
    nodes: Mutex<BTreeMap<String, String>>,
}

impl Recording {
    fn note(&self, verb: &str, resource: &str, name: &str, detail: impl Into<String>) {
        let change =
            PlannedChange { verb: verb.into(), resource: resource.into(), name: name.into(), detail: detail.into() };
        self.changes.lock().push(change);
    }
}

/// Runs the reconciler dry. `context` creates its context from a client and the access to nodes.
pub(super) async fn dry_run(
    client: Client,
    nodes: Arc<dyn NodeAccess>,
    cluster: ChronicleCluster,
    context: impl FnOnce(Client, Arc<dyn Admin>) -> Context,
) -> DryRun {
    let recording = Arc::new(Recording::default());
    let namespace = cluster.namespace().unwrap_or_default();
    let resource = Arc::new(cluster);
    let read_only = read_only_client(client, recording.clone(), &namespace, &resource.name_any());
    let resources: Api<ChronicleCluster> = Api::namespaced(read_only.clone(), &namespace);
    let context = context(read_only, Arc::new(DryRunAdmin { nodes, recording: recording.clone() }));
    let (mut reconciles, mut failed) = (Vec::new(), None);
    while reconciles.len() < RECONCILES_MAX {
        if let Err(error) = reconcile(resource.clone(), context.clone()).await {
            failed = Some(error);
        }
        let changes: Vec<PlannedChange> = recording.changes.lock().drain(..).collect();
        let own = |change: &PlannedChange| change.resource == "chronicleclusters";
        let ends = failed.is_some() || changes.is_empty() || !changes.iter().all(own);
        if !changes.is_empty() {
            reconciles.push(changes);
        }
        if ends {
            break;
        }
    }
    // Read the resource again if there was nothing to write: the operator may have reported concurrently.
    let left = resources.get(&resource.name_any()).await.ok();
    let unreached = recording.unreached.lock().take();
    let reached = unreached.is_none() && !recording.nodes.lock().is_empty();
    let denied = std::mem::take(&mut *recording.denied.lock());
    DryRun { reconciles, cluster: left.unwrap_or_else(|| (*resource).clone()), failed, unreached, reached, denied }
}

/// Returns a client that forwards reads to another one, and records writes.
fn read_only_client(client: Client, recording: Arc<Recording>, namespace: &str, cluster: &str) -> Client {
    let cluster: Arc<str> = cluster.into();
    let service = service_fn(move |request: Request<Body>| {
        let (client, recording, cluster) = (client.clone(), recording.clone(), cluster.clone());
        async move {
            let path = ResourcePath::of(request.uri().path());
            let ours = path.plural == "chronicleclusters" && path.name.as_deref() == Some(&*cluster);
            match *request.method() {
                Method::GET => {
                    if ours && let Some(changed) = &*recording.cluster.lock() {
                        return Ok(reply(changed));
                    }
                    let verb = if path.name.is_some() { "get" } else { "list" };
                    let answer = client.send(request).await?;
                    if answer.status() == StatusCode::FORBIDDEN {
                        recording.denied.lock().insert(format!("{verb} {}", path.plural));
                    }
                    Ok::<_, kube::Error>(answer)
                }
                _ => {
                    let (parts, body) = request.into_parts();
                    let body: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or(Value::Null);
                    write(&client, &recording, &path, ours, &parts, body).await
                }
            }
        }
    });
    Client::new(service, namespace)
}

/// Records a write, and responds as the API server would.
async fn write(
    client: &Client,
    recording: &Recording,
    path: &ResourcePath,
    ours: bool,
    parts: &http::request::Parts,
    body: Value,
) -> Result<Response<Body>, kube::Error> {
    let name = path.name.as_deref().unwrap_or_else(|| body["metadata"]["name"].as_str().unwrap_or_default());
    if path.plural == "events" {
        return Ok(reply(&body));
    }
    if parts.method == Method::DELETE {
        recording.note("delete", &path.plural, name, "");
        return Ok(reply(
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200}),
        ));
    }
    let known = if ours { recording.cluster.lock().clone() } else { None };
    let live = match known {
        Some(known) => Some(known),
        None => read(client, &path.object).await,
    };
    let content = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if ours && let Some(mut changed) = live.clone() {
        let detail = match parts.method {
            Method::PUT => {
                let detail = reported(&changed["status"], &body["status"]);
                changed["status"] = body["status"].clone();
                detail
            }
            _ => {
                merge(&mut changed, &body);
                metadata(&body)
            }
        };
        recording.note("change", &path.plural, name, detail);
        *recording.cluster.lock() = Some(changed.clone());
        return Ok(reply(&changed));
    }
    match live {
        None => recording.note("create", &path.plural, name, ""),
        Some(_) if content.contains("apply") || parts.method == Method::PUT => {
            // The hash of the applied object shows that something differs, and not what.
            let mut wanted = body.clone();
            wanted["metadata"]["annotations"].as_object_mut().and_then(|annotations| annotations.remove(APPLIED));
            let at = live.as_ref().and_then(|live| difference(&wanted, live)).unwrap_or_default();
            recording.note("change", &path.plural, name, at.trim_start_matches('.'));
        }
        Some(_) => recording.note("change", &path.plural, name, flat(&body)),
    }
    let answer = match (content.contains("apply"), live) {
        (false, Some(live)) => live,
        _ => body,
    };
    Ok(reply(&answer))
}

async fn read(client: &Client, path: &str) -> Option<Value> {
    let request = Request::get(path).header("accept", "application/json").body(Body::empty()).ok()?;
    let answer = client.send(request).await.ok().filter(|answer| answer.status().is_success())?;
    serde_json::from_slice(&answer.into_body().collect_bytes().await.ok()?).ok()
}

fn reply(body: &Value) -> Response<Body> {
    Response::new(Body::from(serde_json::to_vec(body).unwrap_or_default()))
}

/// The object of a request path.
struct ResourcePath {
    plural: String,
    name: Option<String>,
    /// The path of the object, without a subresource.
    object: String,
}

impl ResourcePath {
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let start = match parts.first() {
            Some(&"api") => 2,
            _ => 3,
        };
        let start = match parts.get(start) {
            Some(&"namespaces") if parts.len() > start + 2 => start + 2,
            _ => start,
        };
        let object = parts.iter().take(start + 2).copied().collect::<Vec<_>>().join("/");
        Self {
            plural: parts.get(start).copied().unwrap_or_default().to_owned(),
            name: parts.get(start + 1).map(|name| (*name).to_owned()),
            object: format!("/{object}"),
        }
    }
}

/// JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => _ = target.as_object_mut().and_then(|target| target.remove(name)),
            value => merge(&mut target[name], value),
        }
    }
}

fn metadata(patch: &Value) -> String {
    let fields = patch["metadata"].as_object().into_iter().flatten();
    let changed = fields.map(|(name, _)| name.as_str()).filter(|name| !matches!(*name, "resourceVersion" | "uid"));
    changed.map(|name| format!("metadata.{name}")).collect::<Vec<_>>().join(", ")
}

/// Describes the change of a status: the operation, then each condition.
fn reported(before: &Value, after: &Value) -> String {
    let (before, after): (ClusterStatus, ClusterStatus) = (
        serde_json::from_value(before.clone()).unwrap_or_default(),
        serde_json::from_value(after.clone()).unwrap_or_default(),
    );
    let mut said = Vec::new();
    let of = |target: &str| if target.is_empty() { "all nodes".to_owned() } else { target.to_owned() };
    match (&before.operation, &after.operation) {
        (None, Some(new)) => said.push(format!("start {:?} of {} at step {:?}", new.kind, of(&new.target), new.step)),
        (Some(old), None) => said.push(format!("finish {:?} of {}", old.kind, of(&old.target))),
        (Some(old), Some(new)) if old.kind != new.kind || old.target != new.target => {
            said.push(format!("change {:?} of {} to {:?} of {}", old.kind, of(&old.target), new.kind, of(&new.target)));
        }
        (Some(old), Some(new)) if old.step != new.step => {
            said.push(format!("{:?} of {}: advance to step {:?}", new.kind, of(&new.target), new.step));
        }
        _ => {}
    }
    if before.size != after.size
        && let Some(size) = after.size
    {
        said.push(format!("size {size}"));
    }
    for condition in &after.conditions {
        let same = |old: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            old.type_ == condition.type_ && old.status == condition.status && old.reason == condition.reason
        };
        if !before.conditions.iter().any(|old| same(&old)) {
            said.push(format!("{} {} {}", condition.type_, condition.status, condition.reason));
        }
    }
    if said.is_empty() { "status".into() } else { said.join("; ") }
}

/// Formats the fields of a patch and their new values on one line, cut to 160 characters. Lists are only counted.
fn flat(patch: &Value) -> String {
    let mut fields = Vec::new();
    leaves("", patch, &mut fields);
    fields.retain(|field| !field.starts_with("metadata.resourceVersion") && !field.starts_with("metadata.uid"));
    fields.join(", ").chars().take(160).collect()
}

fn leaves(path: &str, value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(&path, value, into);
            }
        }
        Value::Array(all) => into.push(format!("{path} ({})", all.len())),
        Value::String(text) => into.push(format!("{path}={text}")),
        other => into.push(format!("{path}={other}")),
    }
}

/// Access to nodes that forwards reads and records commands.
struct DryRunAdmin {
    nodes: Arc<dyn NodeAccess>,
    recording: Arc<Recording>,
}

impl DryRunAdmin {
    fn note<'a>(&self, verb: &str, node_id: &str) -> AdminResult<'a, ()> {
        let name = self.recording.nodes.lock().get(node_id).cloned().unwrap_or_default();
        self.recording.note(verb, "node", if name.is_empty() { node_id } else { &name }, "");
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A reconcile of a cluster never calls these.
fn elsewhere<'a, T: Send + 'a>() -> AdminResult<'a, T> {
    let refused = AdminError::Refused { reason: "UNSUPPORTED".into(), message: "not part of a plan".into() };
    Box::pin(std::future::ready(Err(refused)))
}

impl Admin for DryRunAdmin {
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView> {
        Box::pin(async move {
            let answer = self.nodes.observe(target).await;
            match &answer {
                Ok(view) => {
                    let names = view.nodes.iter().map(|node| (node.node_id.clone(), node.name.clone()));
                    self.recording.nodes.lock().extend(names);
                    *self.recording.unreached.lock() = None;
                }
                // The nodes responded.
                Err(AdminError::TwoClusters(_)) => {}
                Err(error) => *self.recording.unreached.lock() = Some(error.to_string()),
            }
            answer
        })
    }

    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp> {
        self.nodes.catch_up(target, nodes)
    }

    fn drain<'a>(&'a self, _: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        self.note("drain", node_id)
    }

    fn undrain<'a>(&'a self, _: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        self.note("undrain", node_id)
    }

    fn decommission<'a>(&'a self, _: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        self.note("decommission", node_id)
    }

    fn topic<'a>(&'a self, _: &'a Target, _: &'a str) -> AdminResult<'a, Option<chronicle_client::v1::Topic>> {
        elsewhere()
    }

    fn create_topic<'a>(
        &'a self,
        _: &'a Target,
        _: chronicle_client::v1::CreateTopicRequest,
    ) -> AdminResult<'a, chronicle_client::v1::Topic> {
        elsewhere()
    }

    fn alter_topic<'a>(
        &'a self,
        _: &'a Target,
        _: chronicle_client::v1::AlterTopicRequest,
    ) -> AdminResult<'a, chronicle_client::v1::Topic> {
        elsewhere()
    }

    fn delete_topic<'a>(&'a self, _: &'a Target, _: &'a str) -> AdminResult<'a, ()> {
        elsewhere()
    }

    fn rules<'a>(&'a self, _: &'a Target, _: &'a str) -> AdminResult<'a, Vec<chronicle_client::v1::Acl>> {
        elsewhere()
    }

    fn add_rules<'a>(&'a self, _: &'a Target, _: Vec<chronicle_client::v1::Acl>) -> AdminResult<'a, ()> {
        elsewhere()
    }

    fn remove_rules<'a>(&'a self, _: &'a Target, _: Vec<chronicle_client::v1::Acl>) -> AdminResult<'a, ()> {
        elsewhere()
    }

    fn quota<'a>(&'a self, _: &'a Target, _: &'a str) -> AdminResult<'a, Option<chronicle_client::v1::Quota>> {
        elsewhere()
    }

    fn set_quota<'a>(
        &'a self,
        _: &'a Target,
        _: &'a str,
        _: Option<chronicle_client::v1::Quota>,
    ) -> AdminResult<'a, ()> {
        elsewhere()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_which_object_it_is_about() {
        let of = |path: &str| {
            let path = ResourcePath::of(path);
            (path.plural, path.name.unwrap_or_default(), path.object)
        };
        let expected = |plural: &str, name: &str, object: &str| (plural.to_owned(), name.to_owned(), object.to_owned());
        assert_eq!(
            of("/api/v1/namespaces/ns/pods/log-0"),
            expected("pods", "log-0", "/api/v1/namespaces/ns/pods/log-0")
        );
        let path = "/apis/chronicle.dev/v1alpha1/namespaces/ns/chronicleclusters/log";
        assert_eq!(of(&format!("{path}/status")), expected("chronicleclusters", "log", path));
        assert_eq!(of("/api/v1/nodes/n1"), expected("nodes", "n1", "/api/v1/nodes/n1"));
        assert_eq!(of("/apis/apps/v1/namespaces/ns/statefulsets").0, "statefulsets");
        assert_eq!(of("/version").0, "");
    }
}
