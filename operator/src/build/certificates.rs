//! Renders Issuers, Certificates and the trust ConfigMap.
//!
//! By default a cluster has a dedicated CA: a self-signed Issuer signs it, and it signs the certificates. All nodes share one
//! certificate, since all pods of a StatefulSet mount the same Secret; it is valid for the DNS name of every pod.
//!
//! Invariant: nodes and operator trust the CAs in the trust ConfigMap, not the `ca.crt` of their own Secret. During a rotation the
//! ConfigMap has the old and the new CA ([`trust_bundle`]), so that certificates of both verify everywhere.
//!
//! Neighbours: `controller/cluster/rotation.rs` reads the issued Secrets and decides when a CA is rotated.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::{CLUSTER_LABEL, Cluster, OPERATOR_PRINCIPAL, Settings, from_value};
use crate::api::IssuerKind;

/// Validity of the CA: ten years.
const CA_DURATION: &str = "87600h";
/// Renewal of the CA: one year before it expires.
const CA_RENEW_BEFORE: &str = "8760h";
/// Validity of the certificates: 90 days.
pub(crate) const DURATION: &str = "2160h";
/// Renewal of the certificates: 30 days before they expire.
pub(crate) const RENEW_BEFORE: &str = "720h";

pub(super) fn objects(cluster: &Cluster, settings: &Settings) -> Vec<DynamicObject> {
    if !cluster.encrypted() || cluster.spec.security.tls.secrets.is_some() {
        return Vec::new();
    }
    let mut objects = Vec::new();
    if let Some(ca) = cluster.ca_secret() {
        let self_signed = format!("{}-selfsigned", cluster.name);
        objects.push(issuer(cluster, &self_signed, json!({"selfSigned": {}})));
        objects.push(certificate(
            cluster,
            &ca,
            json!({
                "isCA": true,
                "commonName": format!("{} CA", cluster.name),
                "secretName": ca,
                "duration": CA_DURATION,
                "renewBefore": CA_RENEW_BEFORE,
                "usages": ["cert sign", "crl sign"],
                "issuerRef": {"name": self_signed, "kind": "Issuer", "group": "cert-manager.io"},
            }),
        ));
        objects.push(issuer(cluster, &ca, json!({"ca": {"secretName": ca}})));
    }
    let leaf = |usages: Value, secret: String| {
        json!({
            "secretName": secret,
            "duration": DURATION,
            "renewBefore": RENEW_BEFORE,
            "usages": usages,
            "issuerRef": issuer_ref(cluster),
        })
    };
    let mut node = leaf(json!(["digital signature", "server auth", "client auth"]), cluster.node_secret());
    node["dnsNames"] = json!(node_names(cluster, settings));
    objects.push(certificate(cluster, &format!("{}-node", cluster.name), node));
    let mut operator = leaf(json!(["digital signature", "client auth"]), cluster.operator_secret());
    operator["commonName"] = json!(OPERATOR_PRINCIPAL);
    objects.push(certificate(cluster, &format!("{}-operator", cluster.name), operator));
    objects
}

/// Returns the `issuerRef` of the certificates of a cluster.
pub(crate) fn issuer_ref(cluster: &Cluster) -> Value {
    match &cluster.spec.security.tls.issuer_ref {
        Some(given) => {
            let kind = match given.kind {
                IssuerKind::Issuer => "Issuer",
                IssuerKind::ClusterIssuer => "ClusterIssuer",
            };
            json!({"name": given.name, "kind": kind, "group": "cert-manager.io"})
        }
        None => json!({"name": format!("{}-ca", cluster.name), "kind": "Issuer", "group": "cert-manager.io"}),
    }
}

/// Returns the name of the issuer of the certificates of a cluster.
pub fn issuer_name(cluster: &Cluster) -> String {
    issuer_ref(cluster)["name"].as_str().unwrap_or_default().to_owned()
}

/// Returns the DNS names of the certificate of the nodes.
fn node_names(cluster: &Cluster, settings: &Settings) -> Vec<String> {
    let (name, nodes, namespace) = (&cluster.name, cluster.nodes_service(), &cluster.namespace);
    let mut names = vec![
        format!("{nodes}.{namespace}.svc"),
        format!("*.{nodes}.{namespace}.svc"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}"),
        name.clone(),
    ];
    let domain = &settings.cluster_domain;
    let full = names[..3].iter().map(|name| format!("{name}.{domain}")).collect::<Vec<_>>();
    names.extend(full);
    names
}

fn issuer(cluster: &Cluster, name: &str, spec: Value) -> DynamicObject {
    from_value(json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": cluster.metadata(name), "spec": spec,
    }))
}

fn certificate(cluster: &Cluster, name: &str, mut spec: Value) -> DynamicObject {
    spec["privateKey"] = json!({"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"});
    // The operator watches Secrets with this label.
    spec["secretTemplate"] = json!({"labels": {CLUSTER_LABEL: cluster.name}});
    from_value(json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": cluster.metadata(name), "spec": spec,
    }))
}

pub(super) fn trust_map(cluster: &Cluster, trust: &str) -> ConfigMap {
    ConfigMap {
        metadata: cluster.metadata(cluster.trust_config_map()),
        data: Some(BTreeMap::from([("ca.crt".to_owned(), trust.to_owned())])),
        ..ConfigMap::default()
    }
}

/// CAs of a cluster, each a PEM text with any number of certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustInput {
    /// The CA that signs now, and the `ca.crt` of each certificate in use.
    pub current: Vec<String>,
    /// The trusted CAs so far.
    pub trusted: Option<String>,
    /// Whether every node serves a certificate of the current CA, so that former CAs can be removed.
    pub settled: bool,
}

/// Returns the CAs that nodes should trust, without duplicates. Former CAs stay until `settled`. `None`: there is no CA yet.
pub fn trust_bundle(input: &TrustInput) -> Option<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        for block in pem_blocks(text) {
            if !blocks.contains(&block) {
                blocks.push(block);
            }
        }
    };
    // Known CAs keep their order, so that the text changes only with its content.
    let current: Vec<String> = input.current.iter().flat_map(|text| pem_blocks(text)).collect();
    for block in input.trusted.iter().flat_map(|text| pem_blocks(text)) {
        if !input.settled || current.contains(&block) {
            add(&block);
        }
    }
    current.iter().for_each(|block| add(block));
    (!blocks.is_empty()).then(|| blocks.concat())
}

/// Returns whether a bundle has every certificate of a PEM text.
pub(crate) fn trusts(bundle: &str, pem: &str) -> bool {
    let known = pem_blocks(bundle);
    pem_blocks(pem).iter().all(|block| known.contains(block))
}

/// Returns the certificates in a PEM text, in a normal form.
fn pem_blocks(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        let body = &rest[start + BEGIN.len()..];
        let Some(end) = body.find(END) else { break };
        let lines: Vec<&str> = body[..end].lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        found.push(format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")));
        rest = &body[end + END.len()..];
    }
    found
}
