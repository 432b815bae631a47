//! The StatefulSet: pods with stable names and volumes. Kubernetes starts all pods in parallel and never replaces one by itself
//! (`OnDelete`): `plan/` decides which pod is deleted when.

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapProjection, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
    HTTPGetAction, KeyToPath, ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource, SeccompProfile, SecretProjection,
    SecurityContext, TopologySpreadConstraint, Volume, VolumeMount, VolumeProjection, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::config::{CONFIG_DIR, DATA_DIR, FILE, TLS_DIR, config_hash};
use super::{CONFIG_HASH, Cluster, DATA_PORT, OPS_PORT, REVISION, short_hash};
use crate::api::UnsatisfiableTopology;

/// User and group of the image.
const USER: i64 = 65_532;
/// Grace period of a pod, in seconds: the node finishes accepted requests and transfers its leadership.
const GRACE_SECONDS: i64 = 60;
const VOLUME: &str = "data";

/// Returns the name of the pod with this ordinal.
pub fn pod_name(cluster: &str, ordinal: i32) -> String {
    format!("{cluster}-{ordinal}")
}

/// Returns the name of the PersistentVolumeClaim of the pod with this ordinal.
pub fn claim_name(cluster: &str, ordinal: i32) -> String {
    format!("{VOLUME}-{cluster}-{ordinal}")
}

/// Returns the ordinal in the name of a pod or, with the prefix `data-`, of a PersistentVolumeClaim of this cluster.
pub fn ordinal_of(cluster: &str, name: &str) -> Option<i32> {
    let number = name.strip_prefix("data-").unwrap_or(name).strip_prefix(cluster)?.strip_prefix('-')?;
    let ordinal = number.parse().ok()?;
    // Neither "+1" nor "01".
    (number == i32::to_string(&ordinal) && ordinal >= 0).then_some(ordinal)
}

pub(super) fn stateful_set(cluster: &Cluster, pods: i32) -> (StatefulSet, String) {
    let (template, revision) = template(cluster);
    let keep = || Some("Retain".to_owned());
    let set = StatefulSet {
        metadata: cluster.metadata(&cluster.name),
        spec: Some(StatefulSetSpec {
            replicas: Some(pods),
            selector: cluster.label_selector(),
            service_name: Some(cluster.nodes_service()),
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy { type_: Some("OnDelete".into()), rolling_update: None }),
            // The operator deletes claims itself, after it has confirmed that they are unused.
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: keep(),
                when_scaled: keep(),
            }),
            revision_history_limit: Some(3),
            template,
            volume_claim_templates: Some(vec![claim_template(cluster)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    };
    (set, revision)
}

fn claim_template(cluster: &Cluster) -> PersistentVolumeClaim {
    let storage = &cluster.spec.storage;
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME.into()),
            // Must never change: labels of a claim template are immutable.
            labels: Some(cluster.labels()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(storage.size.0.clone()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// Returns the pod template and its hash, which is also one of its annotations.
fn template(cluster: &Cluster) -> (PodTemplateSpec, String) {
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(cluster.labels()),
            annotations: Some([(CONFIG_HASH.to_owned(), config_hash(cluster))].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(cluster)),
    };
    let revision = short_hash(&serde_json::to_vec(&template).unwrap_or_default());
    if let Some(annotations) = template.metadata.as_mut().and_then(|metadata| metadata.annotations.as_mut()) {
        annotations.insert(REVISION.into(), revision.clone());
    }
    (template, revision)
}

fn pod(cluster: &Cluster) -> PodSpec {
    let spec = &cluster.spec;
    let scheduling = &spec.scheduling;
    PodSpec {
        service_account_name: Some(format!("{}-node", cluster.name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        image_pull_secrets: (!spec.image_pull_secrets.is_empty()).then(|| spec.image_pull_secrets.clone()),
        node_selector: (!scheduling.node_selector.is_empty()).then(|| scheduling.node_selector.clone()),
        tolerations: (!scheduling.tolerations.is_empty()).then(|| scheduling.tolerations.clone()),
        affinity: scheduling.affinity.clone(),
        priority_class_name: scheduling.priority_class_name.clone(),
        topology_spread_constraints: Some(vec![
            spread(cluster, "topology.kubernetes.io/zone", UnsatisfiableTopology::ScheduleAnyway),
            spread(cluster, "kubernetes.io/hostname", scheduling.when_unsatisfiable),
        ]),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(cluster)],
        volumes: Some(volumes(cluster)),
        ..PodSpec::default()
    }
}

fn container(cluster: &Cluster) -> Container {
    let spec = &cluster.spec;
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![mount(VOLUME, DATA_DIR, false), mount("config", CONFIG_DIR, true)];
    if cluster.encrypted() {
        mounts.push(mount("tls", TLS_DIR, true));
    }
    let port = |name: &str, number: i32| ContainerPort {
        name: Some(name.into()),
        container_port: number,
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    };
    Container {
        name: "chronicle".into(),
        image: Some(spec.image.clone()),
        image_pull_policy: spec.image_pull_policy.clone(),
        args: Some(
            ["node", "--config"].map(str::to_owned).into_iter().chain([format!("{CONFIG_DIR}/{FILE}")]).collect(),
        ),
        env: Some(vec![
            from_field("CHRONICLE_NODE__NAME", "metadata.name"),
            // Kubernetes 1.35 and later copy the zone label of the machine to its pods. In older versions it is empty, which means no zone.
            from_field("CHRONICLE_CLUSTER__ZONE", "metadata.labels['topology.kubernetes.io/zone']"),
            EnvVar {
                name: "CHRONICLE_NODE__ADVERTISED_ADDRESS".into(),
                value: Some(cluster.pod_address("$(CHRONICLE_NODE__NAME)")),
                value_from: None,
            },
        ]),
        ports: Some(vec![port("data", DATA_PORT), port("ops", OPS_PORT)]),
        // A recovering node is live and not ready. A node that hangs for a minute is restarted.
        liveness_probe: Some(Probe { period_seconds: Some(10), failure_threshold: Some(6), ..probe("/livez") }),
        readiness_probe: Some(Probe { period_seconds: Some(2), failure_threshold: Some(2), ..probe("/readyz") }),
        resources: Some(spec.resources.clone()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn from_field(name: &str, path: &str) -> EnvVar {
    let field = ObjectFieldSelector { api_version: Some("v1".into()), field_path: path.into() };
    EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    }
}

fn probe(path: &str) -> Probe {
    let get = HTTPGetAction {
        path: Some(path.into()),
        port: IntOrString::String("ops".into()),
        scheme: Some("HTTP".into()),
        ..HTTPGetAction::default()
    };
    Probe { http_get: Some(get), timeout_seconds: Some(3), ..Probe::default() }
}

fn volumes(cluster: &Cluster) -> Vec<Volume> {
    let mut volumes = vec![Volume {
        name: "config".into(),
        config_map: Some(ConfigMapVolumeSource { name: cluster.config_map(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    }];
    if cluster.encrypted() {
        let item = |name: &str| KeyToPath { key: name.into(), path: name.into(), mode: None };
        let secret = SecretProjection {
            name: cluster.node_secret(),
            items: Some(vec![item("tls.crt"), item("tls.key")]),
            optional: None,
        };
        let trust =
            ConfigMapProjection { name: cluster.trust_config_map(), items: Some(vec![item("ca.crt")]), optional: None };
        // One projected volume, so that the three files change atomically.
        let sources = vec![
            VolumeProjection { secret: Some(secret), ..VolumeProjection::default() },
            VolumeProjection { config_map: Some(trust), ..VolumeProjection::default() },
        ];
        volumes.push(Volume {
            name: "tls".into(),
            projected: Some(ProjectedVolumeSource { sources: Some(sources), default_mode: Some(0o440) }),
            ..Volume::default()
        });
    }
    volumes
}

fn spread(cluster: &Cluster, key: &str, when: UnsatisfiableTopology) -> TopologySpreadConstraint {
    let when = match when {
        UnsatisfiableTopology::ScheduleAnyway => "ScheduleAnyway",
        UnsatisfiableTopology::DoNotSchedule => "DoNotSchedule",
    };
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.into(),
        when_unsatisfiable: when.into(),
        label_selector: Some(cluster.label_selector()),
        ..TopologySpreadConstraint::default()
    }
}
