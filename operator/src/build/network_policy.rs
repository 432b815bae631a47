//! The NetworkPolicy: which peers can reach the pods.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Cluster, Settings};
use crate::api::NetworkPolicyMode;

/// Restricts ingress only: nodes need egress to DNS and to each other, and to destinations that the operator does not know.
pub(super) fn network_policy(cluster: &Cluster, settings: &Settings) -> Option<NetworkPolicy> {
    let asked = &cluster.spec.network_policy;
    if asked.mode == NetworkPolicyMode::Disabled {
        return None;
    }
    let mut from = vec![
        NetworkPolicyPeer { pod_selector: Some(cluster.label_selector()), ..NetworkPolicyPeer::default() },
        NetworkPolicyPeer {
            namespace_selector: Some(labels("kubernetes.io/metadata.name", &settings.operator_namespace)),
            pod_selector: Some(labels("app.kubernetes.io/name", "chronicle-operator")),
            ..NetworkPolicyPeer::default()
        },
    ];
    from.extend(match &asked.allow_from {
        Some(given) => given.clone(),
        None => vec![NetworkPolicyPeer { pod_selector: Some(LabelSelector::default()), ..Default::default() }],
    });
    let everywhere = NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..Default::default() };
    Some(NetworkPolicy {
        metadata: cluster.metadata(&cluster.name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(cluster.label_selector()),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![rule("data", from), rule("ops", vec![everywhere])]),
            ..NetworkPolicySpec::default()
        }),
    })
}

fn rule(port: &str, from: Vec<NetworkPolicyPeer>) -> NetworkPolicyIngressRule {
    let port = NetworkPolicyPort {
        port: Some(IntOrString::String(port.into())),
        protocol: Some("TCP".into()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule { from: Some(from), ports: Some(vec![port]) }
}

fn labels(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: Some([(key.to_owned(), value.to_owned())].into()), ..LabelSelector::default() }
}
