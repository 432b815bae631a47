//! Specs and clusters for tests.

use serde_json::{Value, json};

use super::{Cluster, validate};
use crate::api::{ChronicleCluster, ChronicleClusterSpec};

/// Returns a resource with the required fields and this spec.
pub(crate) fn resource(spec: Value) -> ChronicleCluster {
    let mut all = json!({"image": "registry.example/chronicle:1.0.0", "storage": {"size": "10Gi"}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let mut resource = ChronicleCluster::new("log", serde_json::from_value::<ChronicleClusterSpec>(all).unwrap());
    resource.metadata.namespace = Some("prod".into());
    resource.metadata.uid = Some("uid-1".into());
    resource
}

pub(crate) fn cluster(spec: Value) -> Cluster {
    validate(&resource(spec), 3, false).unwrap()
}
