//! Runs the operator: leader election, watches, reconcile workers, and an ordered shutdown.
//!
//! Invariants:
//! - Reconcilers run only while this process is the leader.
//! - On shutdown the workers finish their current reconcile, then the Lease is released. The health endpoints respond until the end.
//! - Memory is bounded by the number of resources: watches of owned objects keep nothing, and lists are paged.

use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::Api;
use kube::core::{ApiResource, DeserializeGuard, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Predicate, WatchStreamExt, predicates, reflector, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use tracing::field::Empty;

use super::health::{self, ReadyFlag};
use super::lease::{Leadership, LeaseSettings, run_election};
use crate::admin::Admin;
use crate::api::{ChronicleCluster, ChronicleTopic, ChronicleUser};
use crate::build::{CLUSTER_LABEL, KINDS, OptionalApis, Settings};
use crate::controller::{Context, RECONCILE_TIMEOUT, ReconcileError, cluster, topic, user};
use crate::telemetry::{Metrics, SPANS};

/// Objects per page of a list: a page is in memory at once, for every watched kind.
const PAGE: u32 = 50;
/// Interval of checks whether the CRD of an optional kind is installed.
const KIND_PAUSE: Duration = Duration::from_secs(60);
/// Time limit for reconciles in progress at shutdown.
const GRACE: Duration = Duration::from_secs(20);

/// Settings of the process.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// Namespaces to watch; empty: all.
    pub namespaces: Vec<String>,
    /// Maximum number of resources of one kind that are reconciled concurrently.
    pub concurrency: u16,
    /// Listen address of health and metrics.
    pub health: SocketAddr,
    /// Settings that apply to all clusters.
    pub settings: Settings,
    /// Leader election; `None`: this process always is the leader.
    pub lease: Option<LeaseSettings>,
    /// Name of this process in events.
    pub instance: String,
}

/// Runs until `stop` is cancelled, or until another process has taken over.
///
/// # Errors
/// The health address is not available, or the Lease was lost: the process should exit and be restarted.
pub async fn run(
    client: Client,
    admin: Arc<dyn Admin>,
    run: RunSettings,
    stop: CancellationToken,
) -> Result<(), anyhow::Error> {
    let metrics = Metrics::new();
    let ready = ReadyFlag::default();
    let tasks = TaskTracker::new();
    // Cancelled last, so that probes succeed while the rest stops.
    let last = CancellationToken::new();
    let listener = health::bind(run.health)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on health address {}: {error}", run.health))?;
    tasks.spawn(health::serve(listener, metrics.clone(), ready.clone(), last.clone()));

    let version = tokio::select! {
        version = wait_for_api_server(&client) => Some(version),
        () = stop.cancelled() => None,
    };
    if let Some(version) = version {
        tracing::info!(version, "connected to the API server");
        ready.set();
    }
    let (leads, mut leadership) = watch::channel(Leadership::StandingBy);
    let release = CancellationToken::new();
    match run.lease.clone() {
        Some(lease) => {
            tasks.spawn(run_election(client.clone(), lease, leads, release.clone()));
        }
        None => {
            leads.send_replace(Leadership::Leading);
        }
    }
    tokio::select! {
        _ = leadership.wait_for(|state| *state == Leadership::Leading) => {}
        () = stop.cancelled() => {}
    }
    let mut lost = false;
    if !stop.is_cancelled() {
        metrics.set_leader(true);
        let context = Context::new(client.clone(), admin, run.settings.clone(), metrics.clone(), &run.instance);
        let end = CancellationToken::new();
        let reconcilers = TaskTracker::new();
        let scopes: Vec<Option<String>> = match run.namespaces.as_slice() {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        for scope in &scopes {
            reconcilers.spawn(clusters(client.clone(), scope.clone(), context.clone(), run.concurrency, end.clone()));
            reconcilers.spawn(topics(client.clone(), scope.clone(), context.clone(), run.concurrency, end.clone()));
            reconcilers.spawn(users(client.clone(), scope.clone(), context.clone(), run.concurrency, end.clone()));
        }
        reconcilers.close();
        tokio::select! {
            () = stop.cancelled() => tracing::info!("shutting down"),
            _ = leadership.wait_for(|state| *state == Leadership::Lost) => lost = run.lease.is_some(),
        }
        end.cancel();
        metrics.set_leader(false);
        // After losing the Lease no reconcile may continue: another process is the leader by now.
        let grace = if lost { Duration::ZERO } else { GRACE };
        if timeout(grace, reconcilers.wait()).await.is_err() {
            tracing::warn!("reconcile interrupted; it resumes from the recorded status");
        }
    }
    release.cancel();
    last.cancel();
    tasks.close();
    tasks.wait().await;
    if lost { Err(anyhow::anyhow!("the lease was lost")) } else { Ok(()) }
}

/// Waits until the API server responds, and returns its version.
async fn wait_for_api_server(client: &Client) -> String {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return version.git_version,
            Err(error) => tracing::warn!(%error, "cannot reach the API server"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

fn api<K>(client: &Client, scope: Option<&String>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match scope {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// A resource that cannot be parsed is skipped and does not stop the others.
type Guarded<K> = DeserializeGuard<K>;

/// Returns the resource in the same namespace that a label of an object names.
fn named_by<T, K>(label: &'static str) -> impl Fn(PartialObjectMeta<T>) -> Option<ObjectRef<Guarded<K>>>
where
    T: Resource,
    K: Resource<DynamicType = ()>,
{
    move |object| {
        let name = object.metadata.labels.as_ref()?.get(label)?;
        Some(ObjectRef::new(name).within(object.metadata.namespace.as_ref()?))
    }
}

async fn clusters(client: Client, scope: Option<String>, context: Context, concurrency: u16, stop: CancellationToken) {
    let scope = scope.as_ref();
    let mut controller = controller::<ChronicleCluster>(&client, scope, concurrency, &stop)
        .watches_stream(labelled::<Pod>(&client, scope, CLUSTER_LABEL), named_by(CLUSTER_LABEL))
        .watches_stream(labelled::<Secret>(&client, scope, CLUSTER_LABEL), named_by(CLUSTER_LABEL))
        .watches_stream(labelled::<PersistentVolumeClaim>(&client, scope, CLUSTER_LABEL), named_by(CLUSTER_LABEL));
    // The owned objects. A write by the operator itself triggers one more reconcile, which finds no difference.
    for (group, version, kind, plural) in KINDS {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let objects = optional(&client, scope, &context, resource.clone(), CLUSTER_LABEL);
        controller = controller.watches_stream_with(objects, named_by(CLUSTER_LABEL), resource);
    }
    drive("ChronicleCluster", controller, context, cluster::reconcile).await;
}

async fn topics(client: Client, scope: Option<String>, context: Context, concurrency: u16, stop: CancellationToken) {
    let controller = controller::<ChronicleTopic>(&client, scope.as_ref(), concurrency, &stop);
    drive("ChronicleTopic", controller, context, topic::reconcile).await;
}

async fn users(client: Client, scope: Option<String>, context: Context, concurrency: u16, stop: CancellationToken) {
    let scope = scope.as_ref();
    let certificate = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"),
        "certificates",
    );
    let certificates = optional(&client, scope, &context, certificate.clone(), user::USER_LABEL);
    let controller = controller::<ChronicleUser>(&client, scope, concurrency, &stop)
        .watches_stream(labelled::<Secret>(&client, scope, user::USER_LABEL), named_by(user::USER_LABEL))
        .watches_stream_with(certificates, named_by(user::USER_LABEL), certificate);
    drive("ChronicleUser", controller, context, user::reconcile).await;
}

/// Watches objects with a label. Transfers only metadata and stores nothing.
fn labelled<K>(client: &Client, scope: Option<&String>, label: &str) -> impl Stream<Item = Touched<K>> + Send + use<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api = api::<PartialObjectMeta<K>>(client, scope);
    watcher(api, watcher::Config::default().labels(label).page_size(PAGE)).default_backoff().touched_objects()
}

type Touched<K> = Result<PartialObjectMeta<K>, watcher::Error>;

/// Watches objects of an optional kind. Checks from time to time whether its CRD is installed.
fn optional(
    client: &Client,
    scope: Option<&String>,
    context: &Context,
    resource: ApiResource,
    label: &str,
) -> impl Stream<Item = Touched<DynamicObject>> + Send + use<> {
    let api: Api<PartialObjectMeta<DynamicObject>> = match scope {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let (context, labelled) = (context.clone(), watcher::Config::default().labels(label).page_size(PAGE));
    let there = async move {
        while !serves(&resource.group, context.optional_apis().await) {
            tokio::time::sleep(KIND_PAUSE).await;
        }
    };
    futures::stream::once(there)
        .flat_map(move |()| watcher(api.clone(), labelled.clone()).default_backoff().touched_objects())
}

/// Returns whether the API server serves a group.
fn serves(group: &str, apis: OptionalApis) -> bool {
    match group {
        "cert-manager.io" => apis.cert_manager,
        "monitoring.coreos.com" => apis.pod_monitor,
        _ => true,
    }
}

/// Creates a controller that is triggered by changes of spec, annotations and finalizers, not by its own status writes.
fn controller<K>(
    client: &Client,
    scope: Option<&String>,
    concurrency: u16,
    stop: &CancellationToken,
) -> Controller<Guarded<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (reader, writer) = reflector::store();
    let watched = watcher(api_guarded::<K>(client, scope), watcher::Config::default().page_size(PAGE));
    // This store grows with the number of resources, so it drops what it can. Every reconcile reads its resource again.
    let watched = watched.modify(|resource| resource.meta_mut().managed_fields = None);
    let changed = predicates::generation.combine(predicates::annotations).combine(predicates::finalizers);
    let stream = watched
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .predicate_filter(changed, kube::runtime::PredicateConfig::default());
    let stop = stop.clone();
    Controller::for_stream(stream, reader)
        .with_config(Config::default().concurrency(concurrency))
        .graceful_shutdown_on(async move { stop.cancelled().await })
}

fn api_guarded<K>(client: &Client, scope: Option<&String>) -> Api<Guarded<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match scope {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Runs a controller to its end. The class of an error decides on the delay of the retry.
async fn drive<K, F, Fut>(kind: &'static str, controller: Controller<Guarded<K>>, context: Context, reconcile: F)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    F: Fn(Arc<K>, Context) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let run = move |resource: Arc<Guarded<K>>, context: Arc<Context>| {
        let reconcile = reconcile.clone();
        async move {
            let key = key(kind, &*resource);
            let resource = match &resource.0 {
                Ok(resource) => Arc::new(resource.clone()),
                Err(invalid) => {
                    tracing::warn!(resource = key, error = %invalid.error, "cannot parse the resource; waiting for a change");
                    return Ok(Action::await_change());
                }
            };
            #[expect(clippy::disallowed_methods, reason = "measures the duration of a reconcile for a metric")]
            let started = Instant::now();
            let span = tracing::info_span!(
                target: SPANS,
                "reconcile",
                otel.name = format!("reconcile {kind}"),
                otel.status_code = Empty,
                otel.status_description = Empty,
                resource = key,
            );
            // A timeout is equivalent to the end of the process at this point: the next reconcile resumes from the recorded status.
            let run = reconcile(resource, Context::clone(&context)).instrument(span.clone());
            let result = timeout(RECONCILE_TIMEOUT, run).await.unwrap_or(Err(ReconcileError::TimedOut));
            context.metrics().reconciled(kind, started.elapsed(), result.as_ref().err().map(ReconcileError::reason));
            match &result {
                Ok(_) => context.succeeded(&key),
                Err(error) => {
                    span.record("otel.status_code", "ERROR");
                    span.record("otel.status_description", error.reason());
                }
            }
            result
        }
    };
    let failed = move |resource: Arc<Guarded<K>>, error: &ReconcileError, context: Arc<Context>| {
        let key = key(kind, &*resource);
        let pause = error.retry_delay(context.failed(&key));
        let retry_in_ms = pause.as_millis() as u64;
        match error.is_transient() {
            true => tracing::info!(resource = key, %error, retry_in_ms, "reconcile failed; retrying"),
            false => tracing::warn!(resource = key, %error, retry_in_ms, "reconcile failed"),
        }
        Action::requeue(pause)
    };
    controller.run(run, failed, Arc::new(context)).for_each(|_| std::future::ready(())).await;
}

fn key<K: Resource>(kind: &str, resource: &K) -> String {
    format!("{kind}/{}/{}", resource.meta().namespace.clone().unwrap_or_default(), resource.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fake_kubernetes::{FakeKubernetes, NAMESPACE};

    /// Everything together: lease, watches, reconcilers, shutdown.
    #[tokio::test(start_paused = true)]
    async fn the_process_brings_a_cluster_up_and_releases_its_lease() {
        let fake = FakeKubernetes::new();
        let spec = serde_json::json!({"image": "chronicle:1.0.0", "storage": {"size": "1Gi"}});
        let resource = serde_json::json!({
            "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": "log"}, "spec": spec,
        });
        fake.put("chronicleclusters", resource);
        let broken = serde_json::json!({
            "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": "broken"},
            "spec": {"replicas": "many"},
        });
        fake.put("chronicleclusters", broken);
        let second = Duration::from_secs(1);
        let settings = RunSettings {
            namespaces: Vec::new(),
            concurrency: 4,
            health: ([127, 0, 0, 1], 0).into(),
            settings: Settings::default(),
            lease: Some(LeaseSettings {
                namespace: NAMESPACE.into(),
                name: "operator".into(),
                identity: "me".into(),
                duration: 15 * second,
                renew_deadline: 10 * second,
                period: 2 * second,
            }),
            instance: "me".into(),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(fake.client(), Arc::new(fake.admin()), settings, stop.clone()));
        let quorate = |fake: &FakeKubernetes| {
            let status = fake.get("chronicleclusters", "log").unwrap()["status"].clone();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            status["operation"].is_null()
                && conditions
                    .iter()
                    .any(|condition| condition["type"] == "Progressing" && condition["reason"] == "Settled")
        };
        let mut seconds = 0;
        while !quorate(&fake) {
            assert!(seconds < 600, "not up after {seconds} s: {}", fake.get("chronicleclusters", "log").unwrap());
            fake.tick();
            tokio::time::sleep(second).await;
            seconds += 1;
        }
        // A deleted object is recreated at once, not at the next poll.
        for (plural, name) in [("services", "log"), ("configmaps", "log-config"), ("certificates", "log-node")] {
            let before = fake.get(plural, name).unwrap()["metadata"]["uid"].clone();
            fake.delete(plural, name);
            let mut waited = 0;
            while fake.get(plural, name).is_none_or(|object| object["metadata"]["uid"] == before) {
                assert!(waited < 5, "{plural}/{name} is still gone after {waited} s");
                fake.tick();
                tokio::time::sleep(second).await;
                waited += 1;
            }
        }
        tokio::time::sleep(10 * second).await;
        fake.writes.lock().clear();
        tokio::time::sleep(600 * second).await;
        let writes: Vec<String> =
            fake.writes.lock().iter().filter(|write| !write.contains("leases")).cloned().collect();
        assert_eq!(writes, Vec::<String>::new(), "ten minutes of a converged cluster");
        stop.cancel();
        running.await.unwrap().unwrap();
        let lease = fake.get("leases", "operator").unwrap();
        assert!(lease["spec"]["holderIdentity"].is_null(), "{lease}");
    }
}
