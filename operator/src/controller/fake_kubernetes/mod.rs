//! A fake Kubernetes cluster for tests: an API server in memory behind a real client, the controllers that the operator relies on, and a
//! simulated Chronicle cluster on the disks of the pods.
//!
//! Invariants:
//! - Its state advances only with calls to the API server and with [`FakeKubernetes::tick`].
//! - A call that violates an invariant of the operator panics (`invariants.rs`).
//!
//! Neighbours: `api_server.rs` responds to requests, `controllers.rs` simulates the StatefulSet controller, the kubelets and cert-manager,
//! and `admin/fake.rs` simulates the Chronicle nodes.

mod api_server;
mod controllers;
mod invariants;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use http::Request;
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Context;
use crate::admin::AdminError;
use crate::admin::fake::{FakeAdmin, FakeCluster};
use crate::build::{OptionalApis, REVISION};

/// Plural name of the kind, and name of the object. All objects are in one namespace.
type StoreKey = (String, String);

/// A fake Kubernetes cluster. Cheap to clone; clones share the state.
#[derive(Clone)]
pub(crate) struct FakeKubernetes {
    pub(crate) objects: Arc<Mutex<BTreeMap<StoreKey, Value>>>,
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
    applied: Arc<Mutex<BTreeMap<StoreKey, Value>>>,
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

pub(crate) const NAMESPACE: &str = "ns";

impl FakeKubernetes {
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
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let content = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or("");
                let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                if let Some(query) = parts.uri.query().filter(|query| query.contains("watch=true")) {
                    let plural = parts.uri.path().rsplit('/').next().unwrap_or_default();
                    return Ok(fake.watch(plural, query));
                }
                let answer = fake.answer(&parts.method, &parts.uri.to_string(), content, value);
                answer.map(|answer| answer.map(axum::body::Body::new))
            }
        });
        Client::new(service, NAMESPACE)
    }

    /// Returns the context of a new operator process.
    pub(crate) fn operator(&self) -> Context {
        let apis = OptionalApis { cert_manager: true, pod_monitor: false };
        let seconds = self.seconds.clone();
        let clock = Arc::new(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
        Context::for_tests(self.client(), Arc::new(self.admin()), apis, clock)
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

    /// Returns the only ChronicleCluster.
    fn resource(&self) -> Value {
        let objects = self.objects.lock();
        let found = objects.iter().find(|((kind, _), _)| kind == "chronicleclusters");
        found.map(|(_, object)| object.clone()).unwrap_or(Value::Null)
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
