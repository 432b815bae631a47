//! What others may do with the pods: evict them, scrape them.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::DynamicObject;
use serde_json::json;

use super::{Cluster, from_value};
use crate::api::PodMonitorMode;

/// One pod at a time may be evicted: a stopping node transfers its leadership, and the others keep a majority. A pod that is not ready
/// may always be evicted.
pub(super) fn disruption_budget(cluster: &Cluster) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: cluster.metadata(&cluster.name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(cluster.label_selector()),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

pub(super) fn pod_monitor(cluster: &Cluster) -> Option<DynamicObject> {
    let asked = &cluster.spec.monitoring;
    if asked.pod_monitor == PodMonitorMode::Disabled {
        return None;
    }
    let mut metadata = cluster.metadata(&cluster.name);
    let mut labels = asked.labels.clone();
    labels.extend(cluster.labels());
    metadata.labels = Some(labels);
    Some(from_value(json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": cluster.selector()},
            "podMetricsEndpoints": [{
                "port": "ops",
                "path": "/metrics",
                // The rules in deploy/alerts select jobs that begin with `chronicle` and aggregate by job, one per cluster. The
                // defaults of Prometheus are NAMESPACE/NAME, and the address of the pod as the instance.
                "relabelings": [
                    {"targetLabel": "job", "replacement": format!("chronicle/{}/{}", cluster.namespace, cluster.name)},
                    {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance"},
                ],
            }],
        },
    })))
}
