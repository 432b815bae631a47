//! The Services and the ServiceAccount of the pods.

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Cluster, DATA_PORT, OPS_PORT};

/// Pods do not use the API server: the account has no token.
pub(super) fn service_account(cluster: &Cluster) -> ServiceAccount {
    ServiceAccount {
        metadata: cluster.metadata(format!("{}-node", cluster.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The headless Service for discovery between nodes: a DNS name for every pod, ready or not.
pub(super) fn nodes(cluster: &Cluster) -> Service {
    Service {
        metadata: cluster.metadata(cluster.nodes_service()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(cluster.selector()),
            ports: Some(vec![port("data", DATA_PORT), port("ops", OPS_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The Service that clients connect to first.
pub(super) fn clients(cluster: &Cluster) -> Service {
    Service {
        metadata: cluster.metadata(&cluster.name),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            selector: Some(cluster.selector()),
            ports: Some(vec![port("data", DATA_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number,
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::String(name.into())),
        ..ServicePort::default()
    }
}
