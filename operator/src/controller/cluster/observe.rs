//! Reads the state of Kubernetes: StatefulSet, pods, claims and their machines, from the API server and not from a cache.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::core::DynamicObject;

use crate::build::{CLUSTER_LABEL, Cluster, REMOVED_NODE, REVISION, ordinal_of};
use crate::controller::{Context, LiveObjects, ReconcileError, is_not_found};
use crate::plan::{CatchUp, ClaimView, HostState, ObservedState, PodView, SetView};
use crate::quantity;

/// Observed state of the Kubernetes objects of a cluster.
pub(super) struct KubernetesState {
    /// Input of the planner, without the state of the nodes.
    pub(super) observed: ObservedState,
    /// Why a claim gets no volume: reason and message of a condition.
    pub(super) unbound: Option<(&'static str, String)>,
}

/// Reads the Kubernetes objects of a cluster.
pub(super) async fn observe(
    context: &Context,
    cluster: &Cluster,
    live: &LiveObjects,
) -> Result<KubernetesState, ReconcileError> {
    let selected = ListParams::default().labels(&format!("{CLUSTER_LABEL}={}", cluster.name));
    let pods: Api<Pod> = Api::namespaced(context.client(), &cluster.namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client(), &cluster.namespace);
    let pods = pods.list(&selected).await.map_err(ReconcileError::kube("list pods"))?;
    let claims = claims.list(&selected).await.map_err(ReconcileError::kube("list claims"))?;
    let mut observed = ObservedState {
        now: context.now(),
        set: live.get(&("StatefulSet".to_owned(), cluster.name.clone())).map(set_view),
        pods: BTreeMap::new(),
        claims: BTreeMap::new(),
        cluster: None,
        catch_up: CatchUp::Unknown,
        not_ready_to_start: None,
    };
    let mut unbound = None;
    for pod in pods.items {
        if let Some(ordinal) = ordinal_of(&cluster.name, &pod.name_any()) {
            let mut view = pod_view(&pod);
            if !view.ready {
                view.host = host_state(context, &pod).await?;
                // A pod on an unreachable machine may still be running.
                view.running |= view.host == HostState::Unreachable;
                view.running &= view.host != HostState::Gone;
            }
            observed.pods.insert(ordinal, view);
        }
    }
    for claim in claims.items {
        if let Some(ordinal) = ordinal_of(&cluster.name, &claim.name_any()) {
            let mut view = claim_view(&claim);
            if observed.pods.get(&ordinal).is_some_and(|pod| !pod.ready) {
                view.lost |= volume_lost(context, &claim).await?;
            }
            if unbound.is_none() {
                unbound = no_class(context, &claim).await?;
            }
            observed.claims.insert(ordinal, view);
        }
    }
    Ok(KubernetesState { observed, unbound })
}

/// Returns why a pending claim cannot get a volume.
async fn no_class(
    context: &Context,
    claim: &PersistentVolumeClaim,
) -> Result<Option<(&'static str, String)>, ReconcileError> {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
    let name = claim.name_any();
    match (phase, class.as_deref()) {
        (Some("Pending"), None) => Ok(Some((
            "StorageClassMissing",
            format!(
                "PersistentVolumeClaim {name} has no storage class and there is no default StorageClass: annotate one with \
                 storageclass.kubernetes.io/is-default-class=true, or recreate the cluster with spec.storage.storageClassName"
            ),
        ))),
        // An empty class: the claim waits for a volume that is created by hand.
        (Some("Pending"), Some(class)) if !class.is_empty() => {
            let classes: Api<StorageClass> = Api::all(context.client());
            match classes.get_metadata_opt(class).await {
                Ok(None) => Ok(Some((
                    "StorageClassMissing",
                    format!(
                        "PersistentVolumeClaim {name} requests StorageClass {class}, which does not exist: create it, or recreate the \
                         cluster with another spec.storage.storageClassName"
                    ),
                ))),
                Ok(Some(_)) => Ok(None),
                Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(None),
                Err(error) => Err(ReconcileError::kube(format!("get StorageClass {class}"))(error)),
            }
        }
        _ => Ok(None),
    }
}

fn set_view(set: &DynamicObject) -> SetView {
    let spec = &set.data["spec"];
    let size = spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"].as_str();
    SetView {
        uid: set.uid().unwrap_or_default(),
        replicas: spec["replicas"].as_i64().and_then(|replicas| i32::try_from(replicas).ok()).unwrap_or(1),
        template_bytes: size.and_then(quantity::bytes).unwrap_or(0),
        terminating: set.metadata.deletion_timestamp.is_some(),
    }
}

/// Converts a pod. A container counts as running unless it is known not to run.
fn pod_view(pod: &Pod) -> PodView {
    let status = pod.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_some_and(|condition| condition.status == "True");
    let container = status.container_statuses.iter().flatten().find(|container| container.name == "chronicle");
    let state = container.and_then(|container| container.state.clone());
    let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    let unscheduled = scheduled.filter(|condition| condition.status == "False");
    let (running, trouble) = match (&state, unscheduled) {
        (_, Some(condition)) => (false, condition.message.clone().unwrap_or_else(|| "cannot be scheduled".into())),
        (Some(state), _) if state.running.is_some() => (true, String::new()),
        (Some(state), _) if state.waiting.is_some() => {
            let waiting = state.waiting.clone().unwrap_or_default();
            (false, [waiting.reason, waiting.message].into_iter().flatten().collect::<Vec<_>>().join(": "))
        }
        (Some(state), _) if state.terminated.is_some() => {
            let ended = state.terminated.clone().unwrap_or_default();
            (
                false,
                format!("the container exited with code {}: {}", ended.exit_code, ended.message.unwrap_or_default()),
            )
        }
        // Pending without a container state: nothing runs yet. In any other phase it may be running.
        _ => (status.phase.as_deref() != Some("Pending"), String::new()),
    };
    let since = ready.filter(|_| !is_ready).and_then(|condition| condition.last_transition_time.clone());
    PodView {
        uid: pod.uid().unwrap_or_default(),
        resource_version: pod.resource_version().unwrap_or_default(),
        revision: pod.annotations().get(REVISION).cloned().unwrap_or_default(),
        image: image(pod),
        ready: is_ready && pod.metadata.deletion_timestamp.is_none(),
        running,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        unready_since: since.map(|time| time.0).or_else(|| created(pod).filter(|_| !is_ready)),
        host: HostState::Present,
        trouble,
    }
}

fn image(pod: &Pod) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let image =
        containers.filter(|container| container.name == "chronicle").find_map(|container| container.image.clone());
    image.unwrap_or_default()
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Returns the state of the machine of a pod that is not ready.
async fn host_state(context: &Context, pod: &Pod) -> Result<HostState, ReconcileError> {
    let Some(name) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
        return Ok(HostState::Unscheduled);
    };
    let nodes: Api<Node> = Api::all(context.client());
    let node = match nodes.get(&name).await {
        Ok(node) => node,
        Err(error) if is_not_found(&error) => return Ok(HostState::Gone),
        // The operator has no right to read Nodes when it is confined to namespaces: the state is unknown.
        Err(kube::Error::Api(status)) if status.is_forbidden() => return Ok(HostState::Present),
        Err(error) => return Err(ReconcileError::kube(format!("get Node {name}"))(error)),
    };
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    if taints.iter().any(|taint| taint.key == "node.kubernetes.io/out-of-service") {
        return Ok(HostState::Gone);
    }
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    Ok(match ready {
        Some(condition) if condition.status == "True" => HostState::Present,
        _ => HostState::Unreachable,
    })
}

fn claim_view(claim: &PersistentVolumeClaim) -> ClaimView {
    let requested = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage").cloned())
        .and_then(|size| quantity::bytes(&size.0));
    let phase = claim.status.as_ref().and_then(|status| status.phase.clone());
    ClaimView {
        uid: claim.uid().unwrap_or_default(),
        requested: requested.unwrap_or(0),
        terminating: claim.metadata.deletion_timestamp.is_some(),
        lost: phase.as_deref() == Some("Lost"),
        removed_node: claim.annotations().get(REMOVED_NODE).cloned(),
    }
}

/// Returns whether the volume of a claim is deleted, or on a machine that was deleted from the Kubernetes cluster.
async fn volume_lost(context: &Context, claim: &PersistentVolumeClaim) -> Result<bool, ReconcileError> {
    let Some(name) = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()) else { return Ok(false) };
    let volumes: Api<PersistentVolume> = Api::all(context.client());
    let volume = match volumes.get(&name).await {
        Ok(volume) => volume,
        Err(error) if is_not_found(&error) => return Ok(true),
        Err(kube::Error::Api(status)) if status.is_forbidden() => return Ok(false),
        Err(error) => return Err(ReconcileError::kube(format!("get PersistentVolume {name}"))(error)),
    };
    let terms = volume.spec.and_then(|spec| spec.node_affinity?.required).map(|required| required.node_selector_terms);
    let hosts: Vec<String> = terms
        .into_iter()
        .flatten()
        .flat_map(|term| term.match_expressions.unwrap_or_default())
        .filter(|expression| expression.key == "kubernetes.io/hostname" && expression.operator == "In")
        .flat_map(|expression| expression.values.unwrap_or_default())
        .collect();
    if hosts.is_empty() {
        return Ok(false);
    }
    let nodes: Api<Node> = Api::all(context.client());
    for host in hosts {
        let labelled = ListParams::default().labels(&format!("kubernetes.io/hostname={host}"));
        match nodes.list_metadata(&labelled).await {
            Ok(found) if found.items.is_empty() => {}
            Ok(_) => return Ok(false),
            Err(kube::Error::Api(status)) if status.is_forbidden() => return Ok(false),
            Err(error) => return Err(ReconcileError::kube("list Nodes")(error)),
        }
    }
    Ok(true)
}
