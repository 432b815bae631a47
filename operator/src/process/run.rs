//! Runs everything until it is told to stop, front to back: the reconcilers finish the pass that they are in, the Lease is given back,
//! health is answered until the end.

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

use super::health::{self, Ready};
use super::lease::{Leadership, LeaseSettings, hold};
use crate::admin::Admin;
use crate::api::{ChronicleCluster, ChronicleTopic, ChronicleUser};
use crate::build::{Available, CLUSTER_LABEL, KINDS, Settings};
use crate::controller::{Context, PASS_TIMEOUT, ReconcileError, cluster, topic, user};

use super::{Metrics, SPANS};

/// Objects in one answer of the API server: what arrives is held in memory at once, for every kind that is watched.
const PAGE: u32 = 50;
/// A kind that the API server does not have is looked for again after this long.
const KIND_PAUSE: Duration = Duration::from_secs(60);
/// Reconcilers get this long to finish the pass that they are in.
const GRACE: Duration = Duration::from_secs(20);

/// How the process runs.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// Namespaces that are looked after; empty: all.
    pub namespaces: Vec<String>,
    /// Resources of one kind that are reconciled at the same time.
    pub concurrency: u16,
    /// Where health and metrics are served.
    pub health: SocketAddr,
    /// What is the same for every cluster.
    pub settings: Settings,
    /// Who acts; `None`: this process, whoever else does.
    pub lease: Option<LeaseSettings>,
    /// Name of this process in events.
    pub instance: String,
}

/// Runs until `stop`, or until another process has taken over.
///
/// # Errors
/// The health port cannot be listened on, or the Lease was lost: the process should end, and be started again.
pub async fn run(
    client: Client,
    admin: Arc<dyn Admin>,
    run: RunSettings,
    stop: CancellationToken,
) -> Result<(), anyhow::Error> {
    let metrics = Metrics::new();
    let ready = Ready::default();
    let tasks = TaskTracker::new();
    // Outlives everything else, so that probes are answered while the rest stops.
    let last = CancellationToken::new();
    let listener =
        health::bind(run.health).await.map_err(|error| anyhow::anyhow!("health address {}: {error}", run.health))?;
    tasks.spawn(health::serve(listener, metrics.clone(), ready.clone(), last.clone()));

    let version = tokio::select! {
        version = reach(&client) => Some(version),
        () = stop.cancelled() => None,
    };
    if let Some(version) = version {
        tracing::info!(version, "reached the API server");
        ready.set();
    }
    let (leads, mut leadership) = watch::channel(Leadership::StandingBy);
    let give_back = CancellationToken::new();
    match run.lease.clone() {
        Some(lease) => {
            tasks.spawn(hold(client.clone(), lease, leads, give_back.clone()));
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
            () = stop.cancelled() => tracing::info!("stopping"),
            _ = leadership.wait_for(|state| *state == Leadership::Lost) => lost = run.lease.is_some(),
        }
        end.cancel();
        metrics.set_leader(false);
        // Who lost the Lease must not finish anything: another process acts by now.
        let grace = if lost { Duration::ZERO } else { GRACE };
        if timeout(grace, reconcilers.wait()).await.is_err() {
            tracing::warn!("a pass was cut off; it is resumed from what is recorded");
        }
    }
    give_back.cancel();
    last.cancel();
    tasks.close();
    tasks.wait().await;
    if lost { Err(anyhow::anyhow!("the lease was lost")) } else { Ok(()) }
}

/// Waits until the API server answers; says its version.
async fn reach(client: &Client) -> String {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return version.git_version,
            Err(error) => tracing::warn!(%error, "the API server does not answer"),
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

/// A resource that cannot be read is skipped and does not stop the others.
type Guarded<K> = DeserializeGuard<K>;

/// The resource in the same namespace that a label of an object names.
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
    // What a cluster consists of. A write of the operator's own brings one more pass, which finds everything as it should be.
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

/// Changes of objects with a label. Only their metadata travels, and nothing is kept.
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

/// The same for objects of a kind that the API server may not have; it is asked from time to time whether it has.
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
        while !serves(&resource.group, context.available().await) {
            tokio::time::sleep(KIND_PAUSE).await;
        }
    };
    futures::stream::once(there)
        .flat_map(move |()| watcher(api.clone(), labelled.clone()).default_backoff().touched_objects())
}

/// Whether objects of a group can be there.
fn serves(group: &str, available: Available) -> bool {
    match group {
        "cert-manager.io" => available.cert_manager,
        "monitoring.coreos.com" => available.pod_monitor,
        _ => true,
    }
}

/// A controller that is triggered by changes of the spec, annotations and finalizers, not by the status that it writes itself.
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
    // The store of all resources is the one thing here that grows with them. Every pass reads its resource anew.
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

/// Runs a controller to its end; errors decide by their class when to try again.
async fn drive<K, F, Fut>(kind: &'static str, controller: Controller<Guarded<K>>, context: Context, reconcile: F)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    F: Fn(Arc<K>, Context) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let pass = move |resource: Arc<Guarded<K>>, context: Arc<Context>| {
        let reconcile = reconcile.clone();
        async move {
            let key = key(kind, &*resource);
            let resource = match &resource.0 {
                Ok(resource) => Arc::new(resource.clone()),
                Err(invalid) => {
                    tracing::warn!(resource = key, error = %invalid.error, "cannot be read; waiting for a change");
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
            // To break a pass off is as if the process had ended there: the next one goes on from what is recorded.
            let pass = reconcile(resource, Context::clone(&context)).instrument(span.clone());
            let result = timeout(PASS_TIMEOUT, pass).await.unwrap_or(Err(ReconcileError::TimedOut));
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
        let pause = error.pause(context.failed(&key));
        let pause_ms = pause.as_millis() as u64;
        match error.is_transient() {
            true => tracing::info!(resource = key, %error, pause_ms, "tried again later"),
            false => tracing::warn!(resource = key, %error, pause_ms, "failed"),
        }
        Action::requeue(pause)
    };
    controller.run(pass, failed, Arc::new(context)).for_each(|_| std::future::ready(())).await;
}

fn key<K: Resource>(kind: &str, resource: &K) -> String {
    format!("{kind}/{}/{}", resource.meta().namespace.clone().unwrap_or_default(), resource.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::world::{NAMESPACE, World};

    /// Everything together: lease, watches, reconcilers, shutdown.
    #[tokio::test(start_paused = true)]
    async fn the_process_brings_a_cluster_up_and_gives_its_lease_back() {
        let world = World::new();
        let spec = serde_json::json!({"image": "chronicle:1.0.0", "storage": {"size": "1Gi"}});
        let resource = serde_json::json!({
            "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": "log"}, "spec": spec,
        });
        world.put("chronicleclusters", resource);
        let broken = serde_json::json!({
            "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": "broken"},
            "spec": {"replicas": "many"},
        });
        world.put("chronicleclusters", broken);
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
        let running = tokio::spawn(run(world.client(), Arc::new(world.admin()), settings, stop.clone()));
        let quorate = |world: &World| {
            let status = world.get("chronicleclusters", "log").unwrap()["status"].clone();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            status["operation"].is_null()
                && conditions
                    .iter()
                    .any(|condition| condition["type"] == "Progressing" && condition["reason"] == "Settled")
        };
        let mut seconds = 0;
        while !quorate(&world) {
            assert!(seconds < 600, "not up after {seconds} s: {}", world.get("chronicleclusters", "log").unwrap());
            world.tick();
            tokio::time::sleep(second).await;
            seconds += 1;
        }
        // What somebody deletes is made again at once, not at the next look at everything.
        for (plural, name) in [("services", "log"), ("configmaps", "log-config"), ("certificates", "log-node")] {
            let before = world.get(plural, name).unwrap()["metadata"]["uid"].clone();
            world.delete(plural, name);
            let mut waited = 0;
            while world.get(plural, name).is_none_or(|object| object["metadata"]["uid"] == before) {
                assert!(waited < 5, "{plural}/{name} is still gone after {waited} s");
                world.tick();
                tokio::time::sleep(second).await;
                waited += 1;
            }
        }
        tokio::time::sleep(10 * second).await;
        world.writes.lock().clear();
        tokio::time::sleep(600 * second).await;
        let writes: Vec<String> =
            world.writes.lock().iter().filter(|write| !write.contains("leases")).cloned().collect();
        assert_eq!(writes, Vec::<String>::new(), "ten minutes of a converged cluster");
        stop.cancel();
        running.await.unwrap().unwrap();
        let lease = world.get("leases", "operator").unwrap();
        assert!(lease["spec"]["holderIdentity"].is_null(), "{lease}");
    }
}
