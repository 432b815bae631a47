//! The PodMonitor: lets a Prometheus operator scrape the nodes.

use kube::api::DynamicObject;
use serde_json::json;

use super::{Cluster, from_value};
use crate::api::PodMonitorMode;

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
