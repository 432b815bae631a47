//! A fake Kubernetes cluster for tests: an API server in memory behind a real client, the controllers that the operator relies on, and a
//! simulated Chronicle cluster on the disks of the pods.
//!
//! Invariants:
//! - Its state advances only with calls to the API server and with [`World::tick`].
//! - A call that violates an invariant of the operator panics (`invariants.rs`).
//!
//! Neighbours: `api_server.rs` responds to requests, `controllers.rs` simulates the StatefulSet controller, the kubelets and cert-manager,
//! and `admin/fake.rs` simulates the Chronicle nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Context;
use crate::admin::AdminError;
use crate::admin::fake::{FakeAdmin, FakeCluster, FakeNode};
use crate::build::{Available, LIVE_FIELDS, REVISION, ordinal_of};

/// Plural name of the kind, and name of the object. All objects are in one namespace.
type Key = (String, String);

/// A fake Kubernetes cluster. Cheap to clone; clones share the state.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) objects: Arc<Mutex<BTreeMap<Key, Value>>>,
    pub(crate) cluster: Arc<Mutex<FakeCluster>>,
    counter: Arc<AtomicUsize>,
    pub(crate) writes: Arc<Mutex<Vec<String>>>,
    /// Number of calls that changed something, in the API server or in the Chronicle cluster.
    pub(crate) calls: Arc<AtomicUsize>,
    /// The operator dies after this many of them: the call takes effect, and its response is lost.
    pub(crate) dies_after: Arc<AtomicUsize>,
    pub(crate) seconds: Arc<AtomicI64>,
    /// Images whose containers do not start.
    pub(crate) broken_images: Arc<Mutex<BTreeSet<String>>>,
    /// Whether the API server rejects larger claims.
    pub(crate) no_growth: Arc<std::sync::atomic::AtomicBool>,
    /// The current CA.
    pub(crate) ca: Arc<Mutex<String>>,
    /// Number of further calls that the API server rejects.
    pub(crate) refusals: Arc<AtomicUsize>,
    /// Last applied object of the operator, by key: server-side apply removes fields that are no longer applied.
    applied: Arc<Mutex<BTreeMap<Key, Value>>>,
    /// Kinds of optional APIs, by `GROUP/VERSION`.
    pub(crate) served: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    /// Failures by plural kind. `KIND`: lists are forbidden. `METHOD KIND`: this method is forbidden. `503 KIND`: lists fail. `404 KIND`:
    /// deletions find no object.
    pub(crate) forbidden: Arc<Mutex<BTreeSet<String>>>,
    /// An admission webhook, which changes every written object.
    pub(crate) webhook: Arc<Mutex<Option<Webhook>>>,
    /// Mounted files, by pod.
    mounted: Arc<Mutex<BTreeMap<String, Mounted>>>,
    /// Reasons of the recorded events.
    pub(crate) events: Arc<Mutex<Vec<String>>>,
    /// Live fields that nodes cannot apply while they run.
    pub(crate) stubborn: Arc<Mutex<BTreeSet<String>>>,
    /// Whether nodes do not report the state of their configuration file.
    pub(crate) mute: Arc<std::sync::atomic::AtomicBool>,
    /// Whether cert-manager issues no certificates.
    pub(crate) no_certificates: Arc<std::sync::atomic::AtomicBool>,
}

type Webhook = fn(&str, &mut Value);

/// Files that a kubelet has mounted into a pod.
#[derive(Clone)]
struct Mounted {
    /// State of the pod at the last update of the files.
    cause: Value,
    trust: String,
    file: String,
}

/// Simulated nodes reject a file with this text.
pub(crate) const NONSENSE: &str = "nonsense";
/// Nodes of version 1.0.0 reject a file with this field.
pub(crate) const NEW_FIELD: &str = "new-in-the-next-version";

fn is_valid(file: &str, version: &str) -> bool {
    !file.contains(NONSENSE) && (version != "1.0.0" || !file.contains(NEW_FIELD))
}

pub(crate) const NAMESPACE: &str = "ns";

impl World {
    pub(crate) fn new() -> Self {
        let cluster = FakeCluster { voters_max: 3, ..FakeCluster::default() };
        Self {
            objects: Arc::default(),
            cluster: Arc::new(Mutex::new(cluster)),
            counter: Arc::new(AtomicUsize::new(1)),
            writes: Arc::default(),
            calls: Arc::default(),
            dies_after: Arc::new(AtomicUsize::new(usize::MAX)),
            seconds: Arc::new(AtomicI64::new(1_800_000_000)),
            broken_images: Arc::default(),
            no_growth: Arc::default(),
            ca: Arc::new(Mutex::new("T0xE".into())),
            refusals: Arc::default(),
            applied: Arc::default(),
            served: Arc::new(Mutex::new(BTreeMap::from([(
                "cert-manager.io/v1".to_owned(),
                vec!["Certificate".to_owned(), "Issuer".to_owned()],
            )]))),
            forbidden: Arc::default(),
            webhook: Arc::default(),
            mounted: Arc::default(),
            events: Arc::default(),
            stubborn: Arc::default(),
            mute: Arc::default(),
            no_certificates: Arc::default(),
        }
    }

    /// Returns an independent copy of the current state.
    pub(crate) fn fork(&self) -> Self {
        let number = |from: &AtomicUsize| Arc::new(AtomicUsize::new(from.load(Ordering::Relaxed)));
        Self {
            objects: Arc::new(Mutex::new(self.objects.lock().clone())),
            cluster: Arc::new(Mutex::new(self.cluster.lock().clone())),
            counter: number(&self.counter),
            writes: Arc::default(),
            calls: Arc::default(),
            dies_after: Arc::new(AtomicUsize::new(usize::MAX)),
            seconds: Arc::new(AtomicI64::new(self.seconds.load(Ordering::Relaxed))),
            broken_images: Arc::new(Mutex::new(self.broken_images.lock().clone())),
            no_growth: Arc::default(),
            ca: Arc::new(Mutex::new(self.ca.lock().clone())),
            refusals: Arc::default(),
            applied: Arc::new(Mutex::new(self.applied.lock().clone())),
            served: Arc::new(Mutex::new(self.served.lock().clone())),
            forbidden: Arc::default(),
            webhook: Arc::default(),
            mounted: Arc::new(Mutex::new(self.mounted.lock().clone())),
            events: Arc::default(),
            stubborn: Arc::new(Mutex::new(self.stubborn.lock().clone())),
            mute: Arc::default(),
            no_certificates: Arc::default(),
        }
    }

    /// Returns a client of the fake API server.
    pub(crate) fn client(&self) -> Client {
        let world = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let world = world.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let content = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or("");
                let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                if let Some(query) = parts.uri.query().filter(|query| query.contains("watch=true")) {
                    let plural = parts.uri.path().rsplit('/').next().unwrap_or_default();
                    return Ok(world.watch(plural, query));
                }
                let answer = world.answer(&parts.method, &parts.uri.to_string(), content, value);
                answer.map(|answer| answer.map(axum::body::Body::new))
            }
        });
        Client::new(service, NAMESPACE)
    }

    /// Returns the context of a new operator process.
    pub(crate) fn operator(&self) -> Context {
        let available = Available { cert_manager: true, pod_monitor: false };
        let seconds = self.seconds.clone();
        let clock = Arc::new(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
        Context::for_tests(self.client(), Arc::new(self.admin()), available, clock)
    }

    /// Returns the access to the simulated Chronicle cluster.
    pub(crate) fn admin(&self) -> FakeAdmin {
        let (before, after) = (self.clone(), self.clone());
        FakeAdmin {
            cluster: self.cluster.clone(),
            before: Arc::new(move |cluster, call, about| {
                before.guard_call(cluster, call, about);
                before.dead().map_err(|_| AdminError::Failed("dead".into()))
            }),
            after: Arc::new(move || after.changed().map_err(|_| AdminError::Failed("dead".into()))),
        }
    }

    fn dead(&self) -> Result<(), ()> {
        let dead = self.calls.load(Ordering::Relaxed) >= self.dies_after.load(Ordering::Relaxed);
        if dead { Err(()) } else { Ok(()) }
    }

    /// Counts a call that took effect.
    fn changed(&self) -> Result<(), ()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.dead()
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.seconds.load(Ordering::Relaxed)).unwrap()
    }

    fn fresh(&self) -> usize {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.objects.lock().get(&(plural.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        self.objects.lock().keys().filter(|(kind, _)| kind == plural).map(|(_, name)| name.clone()).collect()
    }

    /// Writes an object as another client.
    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        object["metadata"]["namespace"] = NAMESPACE.into();
        let objects = &mut *self.objects.lock();
        let key = (plural.to_owned(), name);
        let generation = objects.get(&key).and_then(|old| old["metadata"]["generation"].as_i64()).unwrap_or(0);
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.fresh()).into();
        }
        if object["metadata"]["creationTimestamp"].is_null() {
            object["metadata"]["creationTimestamp"] = self.now().to_string().into();
        }
        object["metadata"]["generation"] = (generation + 1).into();
        object["metadata"]["resourceVersion"] = self.fresh().to_string().into();
        objects.insert(key, object);
    }

    /// Changes an object as another client.
    pub(crate) fn edit(&self, plural: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.get(plural, name).unwrap();
        edit(&mut object);
        self.put(plural, object);
    }

    /// Deletes an object as another client.
    pub(crate) fn delete(&self, plural: &str, name: &str) {
        self.begin_delete(plural, name);
    }

    fn begin_delete(&self, plural: &str, name: &str) {
        let mut objects = self.objects.lock();
        let key = (plural.to_owned(), name.to_owned());
        let Some(object) = objects.get_mut(&key) else { return };
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
            || matches!(plural, "pods" | "persistentvolumeclaims");
        if held {
            object["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z".into();
            object["metadata"]["resourceVersion"] = self.fresh().to_string().into();
        } else {
            let uid = object["metadata"]["uid"].clone();
            objects.remove(&key);
            collect_garbage(&mut objects, &uid);
        }
    }

    fn answer(
        &self,
        method: &Method,
        uri: &str,
        content: &str,
        body: Value,
    ) -> Result<Response<Body>, tower::BoxError> {
        if self.dead().is_err() {
            return Err("the operator is dead".into());
        }
        if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Ok(refuse(503, "ServiceUnavailable"));
        }
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        if path.ends_with("/version") {
            let text = |name: &str| (name.to_owned(), Value::from(""));
            let fields = [
                "buildDate",
                "compiler",
                "gitCommit",
                "gitTreeState",
                "gitVersion",
                "goVersion",
                "major",
                "minor",
                "platform",
            ];
            return Ok(reply(200, &Value::Object(fields.iter().map(|name| text(name)).collect())));
        }
        let path = path.find("/api").map_or(path, |at| &path[at..]);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if let ["apis", group, version] = parts.as_slice() {
            let group = format!("{group}/{version}");
            return Ok(match self.served.lock().get(&group) {
                Some(kinds) => {
                    let one = |kind: &String| {
                        json!({
                            "name": format!("{}s", kind.to_lowercase()), "kind": kind, "namespaced": true,
                            "singularName": "", "verbs": ["get", "list"],
                        })
                    };
                    let resources: Vec<Value> = kinds.iter().map(one).collect();
                    reply(200, &json!({"kind": "APIResourceList", "groupVersion": group, "resources": resources}))
                }
                None => refuse(404, "NotFound"),
            });
        }
        let parts = match parts.as_slice() {
            ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
            _ => return Ok(refuse(404, "NotFound")),
        };
        let parts = match parts {
            ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
            rest => rest,
        };
        let (plural, name, sub) = match parts {
            [plural] => (*plural, None, ""),
            [plural, name] => (*plural, Some(*name), ""),
            [plural, name, sub] => (*plural, Some(*name), *sub),
            _ => return Ok(refuse(404, "NotFound")),
        };
        if plural == "events" {
            self.events.lock().push(body["reason"].as_str().unwrap_or_default().to_owned());
            return Ok(reply(201, &body));
        }
        if self.forbidden.lock().contains(&format!("{method} {plural}")) {
            return Ok(refuse(403, "Forbidden"));
        }
        let response = match (method, name) {
            (&Method::GET, None) => return Ok(self.list(plural, query)),
            (&Method::GET, Some(name)) => {
                return Ok(match self.get(plural, name) {
                    Some(object) => reply(200, &object),
                    None => refuse(404, "NotFound"),
                });
            }
            (&Method::PATCH, Some(name)) => self.patch(plural, name, sub, content, body),
            (&Method::PUT, Some(name)) => self.replace(plural, name, sub, body),
            (&Method::POST, None) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                match self.get(plural, &name) {
                    Some(_) => refuse(409, "AlreadyExists"),
                    None => {
                        self.put(plural, body);
                        reply(201, &self.get(plural, &name).unwrap_or_default())
                    }
                }
            }
            (&Method::DELETE, Some(name)) => self.delete_call(plural, name, &body),
            _ => refuse(405, "MethodNotAllowed"),
        };
        if response.status().is_success() {
            self.writes.lock().push(format!("{method} {plural}/{} {sub}", name.unwrap_or("")));
            if self.changed().is_err() {
                return Err("the operator is dead".into());
            }
        }
        Ok(response)
    }

    fn list(&self, plural: &str, query: &str) -> Response<Body> {
        if self.forbidden.lock().contains(plural) {
            return refuse(403, "Forbidden");
        }
        if self.forbidden.lock().contains(&format!("503 {plural}")) {
            return refuse(503, "ServiceUnavailable");
        }
        let items = self.selected(plural, query);
        let version = self.counter.load(Ordering::Relaxed) - 1;
        let metadata = json!({"resourceVersion": version.to_string()});
        reply(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    /// Returns the items of a list. Items of built-in kinds come without apiVersion and kind.
    fn selected(&self, plural: &str, query: &str) -> Vec<Value> {
        let wanted = query.split('&').find_map(|part| part.strip_prefix("labelSelector="));
        let wanted = wanted.map(|text| text.replace("%2F", "/").replace("%3D", "="));
        let selected = |object: &Value| match wanted.as_ref().map(|text| text.split_once('=').ok_or(text)) {
            Some(Ok((key, value))) => object["metadata"]["labels"][key] == value,
            Some(Err(key)) => !object["metadata"]["labels"][key].is_null(),
            None => true,
        };
        let objects = self.objects.lock();
        let chosen = objects.iter().filter(|((kind, _), object)| kind == plural && selected(object));
        chosen
            .map(|(_, object)| {
                let mut object = object.clone();
                let builtin = object["apiVersion"].as_str().is_none_or(|version| {
                    !["chronicle.dev/", "cert-manager.io/", "monitoring.coreos.com/"]
                        .iter()
                        .any(|group| version.starts_with(group))
                });
                if builtin && let Some(fields) = object.as_object_mut() {
                    fields.remove("apiVersion");
                    fields.remove("kind");
                }
                object
            })
            .collect()
    }

    /// Streams the changes since a resource version, polled ten times per second.
    fn watch(&self, plural: &str, query: &str) -> Response<axum::body::Body> {
        let (world, plural, query) = (self.clone(), plural.to_owned(), query.to_owned());
        let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse().ok());
        let version =
            |object: &Value| object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        let seen: BTreeMap<String, Value> = BTreeMap::new();
        let events = futures::stream::unfold((seen, since.unwrap_or(0_usize), true), move |(seen, since, first)| {
            let (world, plural, query) = (world.clone(), plural.clone(), query.clone());
            async move {
                if !first {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let now: BTreeMap<String, Value> =
                    world.selected(&plural, &query).into_iter().map(|object| (name(&object), object)).collect();
                let mut text = String::new();
                let mut send = |kind: &str, object: &Value| {
                    text.push_str(&json!({"type": kind, "object": object}).to_string());
                    text.push('\n');
                };
                for (name, object) in &now {
                    let known = match seen.get(name) {
                        Some(old) => version(old) == version(object),
                        None => first && version(object).is_some_and(|version: usize| version <= since),
                    };
                    if !known {
                        send("MODIFIED", object);
                    }
                }
                seen.iter()
                    .filter(|(name, _)| !now.contains_key(*name))
                    .for_each(|(_, object)| send("DELETED", object));
                Some((Ok::<_, std::io::Error>(text), (now, since, false)))
            }
        });
        Response::new(axum::body::Body::from_stream(events))
    }

    fn patch(&self, plural: &str, name: &str, sub: &str, content: &str, patch: Value) -> Response<Body> {
        let existing = self.get(plural, name);
        let apply = content.contains("apply");
        if existing.is_none() && !apply {
            return refuse(404, "NotFound");
        }
        let old = existing.unwrap_or_else(|| {
            let created = self.now().to_string();
            json!({"metadata": {"uid": format!("uid-{}", self.fresh()), "creationTimestamp": created}})
        });
        for field in ["resourceVersion", "uid"] {
            let asked = &patch["metadata"][field];
            if !asked.is_null() && *asked != old["metadata"][field] {
                return refuse(409, "Conflict");
            }
        }
        if plural == "persistentvolumeclaims" && !patch["spec"].is_null() && self.no_growth.load(Ordering::Relaxed) {
            return refuse(403, "Forbidden");
        }
        if plural == "statefulsets" {
            self.guard_scale(&old, &patch);
        }
        if plural == "certificates" && sub == "status" {
            self.guard_reissue(name);
        }
        let mut new = old.clone();
        let key = (plural.to_owned(), name.to_owned());
        if apply {
            let before = self.applied.lock().get(&key).cloned().unwrap_or_default();
            apply_to(plural, "", &mut new, &before, &patch);
            if let Some(why) = invalid(plural, &new) {
                return refuse_with(422, "Invalid", &why);
            }
            self.applied.lock().insert(key, patch.clone());
        } else {
            merge(&mut new, &patch);
        }
        if apply {
            // The time in managedFields changes only with the fields, not with every write.
            let mut before = old.clone();
            before["metadata"]["managedFields"] = new["metadata"]["managedFields"].clone();
            if before != new || new["metadata"]["managedFields"].is_null() {
                new["metadata"]["managedFields"] =
                    json!([{"manager": super::FIELD_MANAGER, "operation": "Apply", "time": self.now().to_string()}]);
            }
        }
        self.store(plural, &old, new.clone());
        let gone = new["metadata"]["finalizers"].as_array().is_some_and(Vec::is_empty)
            && !new["metadata"]["deletionTimestamp"].is_null();
        if gone {
            let mut objects = self.objects.lock();
            objects.remove(&(plural.to_owned(), name.to_owned()));
            collect_garbage(&mut objects, &new["metadata"]["uid"]);
        }
        reply(200, &self.get(plural, name).unwrap_or(new))
    }

    fn store(&self, plural: &str, old: &Value, mut new: Value) {
        new["metadata"]["namespace"] = NAMESPACE.into();
        if let Some(webhook) = *self.webhook.lock() {
            webhook(plural, &mut new);
        }
        let changed = old["spec"] != new["spec"];
        if changed {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = (generation + 1).into();
        }
        new["metadata"]["resourceVersion"] = self.fresh().to_string().into();
        let name = new["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.objects.lock().insert((plural.to_owned(), name), new);
    }

    fn replace(&self, plural: &str, name: &str, sub: &str, body: Value) -> Response<Body> {
        let Some(old) = self.get(plural, name) else { return refuse(404, "NotFound") };
        if body["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] {
            return refuse(409, "Conflict");
        }
        let mut new = if sub == "status" { old.clone() } else { body.clone() };
        if sub == "status" {
            new["status"] = body["status"].clone();
        }
        self.store(plural, &old, new.clone());
        reply(200, &self.get(plural, name).unwrap_or(new))
    }

    fn delete_call(&self, plural: &str, name: &str, body: &Value) -> Response<Body> {
        let gone = self.forbidden.lock().contains(&format!("404 {plural}"));
        let Some(object) = self.get(plural, name).filter(|_| !gone) else { return refuse(404, "NotFound") };
        for field in ["resourceVersion", "uid"] {
            let asked = &body["preconditions"][field];
            if !asked.is_null() && *asked != object["metadata"][field] {
                return refuse(409, "Conflict");
            }
        }
        assert!(
            !body["preconditions"]["uid"].is_null(),
            "{plural}/{name} is deleted without its UID as a precondition"
        );
        self.guard_delete(plural, &object);
        if plural == "statefulsets" && body["propagationPolicy"] == "Orphan" {
            self.objects.lock().remove(&(plural.to_owned(), name.to_owned()));
        } else {
            self.begin_delete(plural, name);
        }
        reply(200, &object)
    }

    /// Returns the only ChronicleCluster.
    fn resource(&self) -> Value {
        let objects = self.objects.lock();
        let found = objects.iter().find(|((kind, _), _)| kind == "chronicleclusters");
        found.map(|(_, object)| object.clone()).unwrap_or(Value::Null)
    }

    /// Returns the UUID of the node on the disk of a pod.
    fn node_of(&self, pod: &str) -> Option<String> {
        let claim = self.get("persistentvolumeclaims", &format!("data-{pod}"))?;
        Some(format!("node-{}", claim["metadata"]["uid"].as_str()?))
    }

    fn recorded(&self, target: &str) -> Value {
        let operation = self.resource()["status"]["operation"].clone();
        if operation["target"] == target { operation } else { Value::Null }
    }

    /// Checks a deletion by the operator. The pod of a live node is deleted only with a recorded operation, after its leadership was
    /// transferred, and while the others have a majority. A claim is deleted only if its node was removed, or is dead and being replaced.
    fn guard_delete(&self, plural: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let deleting = !self.resource()["metadata"]["deletionTimestamp"].is_null();
        match plural {
            "pods" => {
                let Some(node) = self.node_of(name) else { return };
                let cluster = self.cluster.lock();
                let Some(known) = cluster.nodes.get(&node).filter(|known| known.running && !known.removed) else {
                    return;
                };
                assert!(
                    !self.recorded(name).is_null(),
                    "pod {name} is deleted without a record: {}",
                    self.resource()["status"]
                );
                let members = cluster.nodes.values().filter(|node| !node.removed).count();
                if members > 2 {
                    assert!(cluster.quorate_without(Some(&node)), "the deletion of pod {name} loses the majority");
                    assert_ne!(cluster.leader.as_ref(), Some(&node), "pod {name} is deleted while its node leads");
                    let dead =
                        cluster.nodes.iter().find(|(id, known)| **id != node && !known.removed && !known.running);
                    assert!(dead.is_none(), "pod {name} is deleted while {dead:?} is dead");
                    let behind =
                        cluster.nodes.iter().find(|(id, known)| **id != node && !known.removed && known.behind > 0);
                    assert!(behind.is_none(), "pod {name} is deleted while {behind:?} is behind");
                    let (same, running) = (known.version.clone(), |known: &&FakeNode| known.running && !known.removed);
                    let refuses = |known: &&FakeNode| {
                        known.version == same && known.configuration.as_ref().is_some_and(|it| !it.error.is_empty())
                    };
                    let asked = self.resource()["spec"]["image"].as_str().is_some_and(|image| image.ends_with(&same));
                    let refused = cluster.nodes.values().filter(running).find(refuses).filter(|_| asked);
                    assert!(refused.is_none(), "pod {name} is deleted while {refused:?} rejects the configuration");
                }
            }
            "persistentvolumeclaims" if !deleting => {
                let pod = name.strip_prefix("data-").unwrap();
                let node = self.node_of(pod).unwrap();
                let cluster = self.cluster.lock();
                let record = self.recorded(pod);
                assert!(!record.is_null(), "claim {name} is deleted without a record");
                match record["kind"].as_str() {
                    Some("ScaleDown") => {
                        // A node may never have started on a disk that replaced a lost one.
                        let member = cluster.nodes.get(&node).is_some_and(|known| !known.removed);
                        assert!(!member, "claim {name} holds a node that is a member");
                        assert!(self.get("pods", pod).is_none(), "claim {name} is deleted before its pod");
                    }
                    Some("Replace") => {
                        let runs = cluster.nodes.get(&node).is_some_and(|known| known.running);
                        assert!(!runs, "claim {name} holds a node that runs");
                    }
                    other => panic!("claim {name} is deleted in the operation {other:?}"),
                }
            }
            _ => {}
        }
    }

    /// Checks a change of the number of pods: a pod is removed only after its node, unless all nodes are being stopped.
    fn guard_scale(&self, old: &Value, patch: &Value) {
        let (Some(from), Some(to)) = (old["spec"]["replicas"].as_i64(), patch["spec"]["replicas"].as_i64()) else {
            return;
        };
        let stop = self.resource()["status"]["operation"]["kind"] == "Stop";
        for ordinal in to..from {
            let pod = format!("{}-{ordinal}", old["metadata"]["name"].as_str().unwrap());
            let member = self
                .node_of(&pod)
                .is_some_and(|node| self.cluster.lock().nodes.get(&node).is_some_and(|known| !known.removed));
            assert!(stop || !member, "{pod} is removed while its node is a member");
        }
    }

    /// Checks a reissue: every node must trust the CA that issues the certificate.
    fn guard_reissue(&self, name: &str) {
        if name.ends_with("-node") || name.ends_with("-operator") {
            let ca = pem(&self.ca.lock());
            for (pod, mounted) in self.mounted.lock().iter() {
                assert!(mounted.trust.contains(&ca), "{name} is reissued by a CA that {pod} does not trust yet");
            }
        }
    }

    /// The kubelets: update mounted ConfigMaps and Secrets every 90 seconds, and at once for a new pod.
    fn mount(&self) {
        let pods = self.names("pods");
        let mut mounted = self.mounted.lock();
        mounted.retain(|pod, _| pods.contains(pod));
        let due = self.seconds.load(Ordering::Relaxed) % 90 == 0;
        for pod in pods {
            let Some(cluster) = pod.rsplit_once('-').map(|(cluster, _)| cluster.to_owned()) else { continue };
            let metadata = self.get("pods", &pod).unwrap()["metadata"].clone();
            let cause = json!([metadata["uid"], metadata["annotations"]]);
            if due || mounted.get(&pod).is_none_or(|before| before.cause != cause) {
                let text = |map: &str, file: &str| {
                    let map = self.get("configmaps", &format!("{cluster}-{map}")).unwrap_or_default();
                    map["data"][file].as_str().unwrap_or_default().to_owned()
                };
                let (trust, file) = (text("trust", "ca.crt"), text("config", "chronicle.yaml"));
                mounted.insert(pod, Mounted { cause, trust, file });
            }
        }
    }

    /// The node of a pod reads its configuration file.
    fn read_file(&self, node: &str, file: &str) {
        let mute = self.mute.load(Ordering::Relaxed);
        let mut cluster = self.cluster.lock();
        let Some(node) = cluster.nodes.get_mut(node) else { return };
        if node.started_with.is_empty() {
            node.started_with = file.to_owned();
            node.configuration = None;
        }
        let known = node.configuration.get_or_insert_default();
        match is_valid(file, &node.version) {
            false => known.error = format!("{NONSENSE}: must be a number"),
            true => {
                let (started, now) = (fields_of(&node.started_with), fields_of(file));
                let changed = |path: &String| started.get(path) != now.get(path);
                let live = |path: &String| {
                    LIVE_FIELDS.lines().any(|live| live == path) && !self.stubborn.lock().contains(path)
                };
                let paths: BTreeSet<&String> = started.keys().chain(now.keys()).collect();
                known.file_digest = blake3::hash(file.as_bytes()).to_hex().to_string();
                known.restart_fields = paths.into_iter().filter(|path| changed(path) && !live(path)).cloned().collect();
                known.error.clear();
            }
        }
        if mute {
            node.configuration = None;
        }
    }

    /// Checks a command to the cluster: the operation must be recorded.
    fn guard_call(&self, cluster: &FakeCluster, call: &str, about: &str) {
        let Some(node) = cluster.nodes.get(about) else { return };
        let record = self.recorded(&node.name);
        assert!(!record.is_null(), "{call} of {} without a record", node.name);
        if call == "decommission" {
            assert_eq!(record["nodeId"], about, "the node to remove was not recorded");
        }
    }

    /// Advances everything but the operator by one second.
    pub(crate) fn tick(&self) {
        self.seconds.fetch_add(1, Ordering::Relaxed);
        self.issue_certificates();
        self.run_sets();
        self.mount();
        self.run_pods();
        self.cluster.lock().tick();
    }

    /// cert-manager: issues missing Secrets and those with a requested reissue.
    fn issue_certificates(&self) {
        if self.no_certificates.load(Ordering::Relaxed) {
            return;
        }
        for name in self.names("certificates") {
            let certificate = self.get("certificates", &name).unwrap();
            let conditions = certificate["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let asked =
                conditions.iter().any(|condition| condition["type"] == "Issuing" && condition["status"] == "True");
            let secret = certificate["spec"]["secretName"].as_str().unwrap().to_owned();
            if self.get("secrets", &secret).is_some() && !asked {
                continue;
            }
            if asked {
                self.edit("certificates", &name, |certificate| certificate["status"]["conditions"] = json!([]));
            }
            let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
            let ca = pem(&self.ca.lock());
            let issued = if certificate["spec"]["isCA"] == true { ca.clone() } else { self.leaf() };
            self.put(
                "secrets",
                json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": {"name": secret, "labels": certificate["spec"]["secretTemplate"]["labels"]},
                    "data": {"tls.crt": encode(&issued), "tls.key": encode("key"), "ca.crt": encode(&ca)},
                }),
            );
        }
    }

    /// Returns a certificate that has only a time of issue.
    fn leaf(&self) -> String {
        let time = self.now().strftime("%y%m%d%H%M%SZ").to_string();
        let wrap = |content: Vec<u8>| [vec![0x30, content.len() as u8], content].concat();
        let validity = wrap([vec![0x17, time.len() as u8], time.into_bytes()].concat());
        let der = wrap(wrap([vec![0x02, 0x01, 0x01, 0x30, 0x00, 0x30, 0x00], validity].concat()));
        pem(&base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der))
    }

    /// Replaces the certificate of the nodes with one of the current CA.
    pub(crate) fn renew_nodes(&self, cluster: &str) {
        let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        let data =
            json!({"tls.crt": encode(&self.leaf()), "tls.key": encode("key"), "ca.crt": encode(&pem(&self.ca.lock()))});
        self.edit("secrets", &format!("{cluster}-node-tls"), |secret| secret["data"] = data);
    }

    /// Returns the `ca.crt` in a Secret.
    pub(crate) fn issued_by(&self, secret: &str) -> String {
        let data = self.get("secrets", secret).unwrap()["data"]["ca.crt"].as_str().unwrap().to_owned();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Creates the Secrets and the trust ConfigMap of a running cluster.
    pub(crate) fn ready_certificates(&self, cluster: &str) {
        let ca = pem(&self.ca.lock());
        let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        let data = json!({"tls.crt": encode(&ca), "tls.key": encode("key"), "ca.crt": encode(&ca)});
        for name in ["ca", "node-tls", "operator-tls"] {
            let metadata = json!({"name": format!("{cluster}-{name}")});
            self.put("secrets", json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}));
        }
        let metadata = json!({"name": format!("{cluster}-trust")});
        self.put(
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": ca}}),
        );
    }

    fn run_sets(&self) {
        for name in self.names("statefulsets") {
            let set = self.get("statefulsets", &name).unwrap();
            let (spec, uid) = (&set["spec"], &set["metadata"]["uid"]);
            let replicas = spec["replicas"].as_i64().unwrap() as i32;
            for ordinal in 0..replicas {
                let pod = format!("{name}-{ordinal}");
                let claim = format!("data-{pod}");
                if self.get("persistentvolumeclaims", &claim).is_none() {
                    let mut object = spec["volumeClaimTemplates"][0].clone();
                    object["metadata"]["name"] = claim.into();
                    object["apiVersion"] = "v1".into();
                    object["kind"] = "PersistentVolumeClaim".into();
                    self.put("persistentvolumeclaims", object);
                }
                if self.get("pods", &pod).is_none() {
                    let mut metadata = spec["template"]["metadata"].clone();
                    metadata["name"] = pod.into();
                    metadata["ownerReferences"] =
                        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": uid}]);
                    let object = json!({
                        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                        "spec": spec["template"]["spec"], "status": {"phase": "Pending"},
                    });
                    self.put("pods", object);
                }
            }
            for pod in self.names("pods") {
                if ordinal_of(&name, &pod).is_some_and(|ordinal| ordinal >= replicas) {
                    self.begin_delete("pods", &pod);
                }
            }
        }
    }

    fn run_pods(&self) {
        let mut running = BTreeSet::new();
        for name in self.names("pods") {
            let pod = self.get("pods", &name).unwrap();
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                self.objects.lock().remove(&("pods".to_owned(), name));
                continue;
            }
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
            let node = self.node_of(&name);
            let starts =
                !self.broken_images.lock().contains(image) && pod["metadata"]["annotations"]["stuck"].is_null();
            let version = image.rsplit_once(':').map_or("", |(_, version)| version);
            let file = self.mounted.lock().get(&name).map(|mounted| mounted.file.clone()).unwrap_or_default();
            let runs = |node: &String| self.cluster.lock().nodes.get(node).is_some_and(|known| known.running);
            // A running node keeps its previous configuration.
            let starts = starts && (is_valid(&file, version) || node.as_ref().is_some_and(runs));
            let ready = match node.filter(|_| starts) {
                Some(node) if self.cluster.lock().start(&node, &name, version) => {
                    self.read_file(&node, &file);
                    running.insert(node)
                }
                _ => false,
            };
            let status = if ready {
                json!({
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [container(json!({"running": {}}))],
                })
            } else {
                json!({
                    "phase": "Pending",
                    "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2027-01-01T00:00:00Z"}],
                    "containerStatuses": [container(json!({"waiting": {"reason": "ImagePullBackOff"}}))],
                })
            };
            if pod["status"] != status {
                self.edit("pods", &name, |pod| pod["status"] = status);
            }
        }
        self.cluster.lock().stop_all_but(&running);
        let pods = self.names("pods");
        let mut objects = self.objects.lock();
        objects.retain(|(kind, name), object| {
            let used = name.strip_prefix("data-").is_some_and(|pod| pods.iter().any(|known| known == pod));
            kind != "persistentvolumeclaims" || object["metadata"]["deletionTimestamp"].is_null() || used
        });
    }

    /// Returns the images of the pods, in the order of the pods.
    pub(crate) fn images(&self) -> Vec<String> {
        let image = |pod: String| {
            self.get("pods", &pod).unwrap()["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
        };
        self.names("pods").into_iter().map(image).collect()
    }

    /// Returns the revisions of the pods.
    pub(crate) fn revisions(&self) -> BTreeSet<String> {
        let of = |pod: String| {
            self.get("pods", &pod).unwrap()["metadata"]["annotations"][REVISION].as_str().unwrap().to_owned()
        };
        self.names("pods").into_iter().map(of).collect()
    }
}

/// Returns a PEM text with this body.
pub(crate) fn pem(text: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn container(state: Value) -> Value {
    json!({"name": "chronicle", "image": "x", "imageID": "", "ready": true, "restartCount": 0, "state": state})
}

fn collect_garbage(objects: &mut BTreeMap<Key, Value>, owner: &Value) {
    let owned = |object: &Value| {
        object["metadata"]["ownerReferences"].as_array().is_some_and(|all| all.iter().any(|one| one["uid"] == *owner))
    };
    let gone: Vec<(Key, Value)> = objects
        .iter()
        .filter(|(_, object)| owned(object))
        .map(|(key, object)| (key.clone(), object["metadata"]["uid"].clone()))
        .collect();
    for (key, uid) in gone {
        objects.remove(&key);
        collect_garbage(objects, &uid);
    }
}

/// Server-side apply: removes fields that were applied before and are not any more, and merges keyed lists.
fn apply_to(plural: &str, field: &str, target: &mut Value, before: &Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for name in before.as_object().into_iter().flat_map(|before| before.keys()) {
                if !patch.contains_key(name) {
                    target.remove(name);
                }
            }
            for (name, value) in patch {
                let there = target.entry(name.clone()).or_insert(Value::Null);
                apply_to(plural, name, there, &before[name], value);
            }
        }
        (Value::Array(target), Value::Array(patch))
            if patch.iter().all(|item| key_of(plural, field, item).is_some()) =>
        {
            let key = |item: &Value| key_of(plural, field, item);
            let of = |all: &Value, wanted: &Option<String>| {
                let mut found = all.as_array().into_iter().flatten().filter(|item| key(item) == *wanted);
                found.next().cloned()
            };
            let applied: BTreeSet<Option<String>> = patch.iter().map(key).collect();
            target.retain(|item| applied.contains(&key(item)) || of(before, &key(item)).is_none());
            for item in patch {
                let at = target.iter().position(|there| key(there) == key(item));
                let at = at.unwrap_or_else(|| {
                    target.push(json!({}));
                    target.len() - 1
                });
                apply_to(plural, "", &mut target[at], &of(before, &key(item)).unwrap_or_default(), item);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// Returns the fields of a configuration file by path.
fn fields_of(file: &str) -> BTreeMap<String, Value> {
    fn leaves(path: &str, value: Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    leaves(format!("{path}.{name}").trim_start_matches('.'), value, into);
                }
            }
            value => _ = into.insert(path.to_owned(), value),
        }
    }
    let mut fields = BTreeMap::new();
    leaves("", serde_yaml::from_str(file).unwrap_or_default(), &mut fields);
    fields
}

/// Returns the key of a list item, for keyed lists.
fn key_of(plural: &str, field: &str, item: &Value) -> Option<String> {
    let text = |value: &Value| (!value.is_null()).then(|| value.to_string());
    let protocol = item["protocol"].as_str().unwrap_or("TCP");
    match field {
        "ports" if plural == "services" => Some(format!("{} {protocol}", text(&item["port"])?)),
        "ports" if plural == "statefulsets" => Some(format!("{} {protocol}", text(&item["containerPort"])?)),
        "containers" | "env" | "volumes" if plural == "statefulsets" => text(&item["name"]),
        "volumeMounts" => text(&item["mountPath"]),
        "ownerReferences" => text(&item["uid"]),
        _ => None,
    }
}

/// Returns why the API server rejects an object.
fn invalid(plural: &str, object: &Value) -> Option<String> {
    if plural != "services" {
        return None;
    }
    let mut names = BTreeSet::new();
    let ports = object["spec"]["ports"].as_array().into_iter().flatten();
    let twice = ports.map(|port| port["name"].to_string()).find(|name| !names.insert(name.clone()))?;
    Some(format!("spec.ports: Duplicate value: {twice}"))
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                if value.is_null() {
                    target.remove(name);
                } else {
                    merge(target.entry(name.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn reply(code: u16, body: &Value) -> Response<Body> {
    let status = StatusCode::from_u16(code).unwrap();
    Response::builder().status(status).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

fn refuse(code: u16, reason: &str) -> Response<Body> {
    refuse_with(code, reason, reason)
}

fn refuse_with(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    reply(code, &status)
}
