//! Validates what the API server cannot validate about a spec.
//!
//! Neighbours: the CEL rules in `api/cluster.rs` have the rest. `controller/cluster` reports an invalid spec as the reason InvalidSpec.

use kube::ResourceExt;
use serde_json::Value;

use super::Cluster;
use crate::api::ChronicleCluster;
use crate::quantity;

/// An invalid field of a spec: the field, its value and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec.{field}: {value}: {rule}")]
pub struct InvalidSpec {
    /// Path below `spec`.
    pub field: String,
    /// Value in the spec.
    pub value: String,
    /// Rule that the value breaks.
    pub rule: String,
}

/// Sections and fields of the node's configuration file that the operator manages.
const SECTIONS: [&str; 2] = ["listeners", "security"];
const FIELDS: [(&str, &[&str]); 2] = [
    // One address for all pods would belong to the first of them, and no other node could join.
    ("node", &["name", "data-dir", "advertised-address", "advertised-addresses"]),
    (
        "cluster",
        &[
            "bootstrap-expect",
            "discovery",
            "seeds",
            "dns-name",
            "gossip-listen",
            "gossip-address",
            "gossip-name",
            "zone",
            "voters",
        ],
    ),
];

/// Validates the spec of a resource. `initial_nodes` is the number of initial nodes.
///
/// # Errors
/// The first invalid field. Only a change of the spec helps.
pub fn validate(resource: &ChronicleCluster, initial_nodes: i32, bootstrapped: bool) -> Result<Cluster, InvalidSpec> {
    let invalid =
        |field: &str, value: String, rule: &str| InvalidSpec { field: field.into(), value, rule: rule.into() };
    let spec = resource.spec.clone();
    let size = &spec.storage.size.0;
    let storage_bytes = quantity::bytes(size)
        .ok_or_else(|| invalid("storage.size", size.clone(), "must be a quantity of bytes such as 100Gi"))?;
    if spec.image.trim().is_empty() || spec.image.contains(char::is_whitespace) {
        return Err(invalid("image", format!("{:?}", spec.image), "must be REPOSITORY:TAG or REPOSITORY@DIGEST"));
    }
    for (section, value) in &spec.config {
        let path = format!("config.{section}");
        if SECTIONS.contains(&section.as_str()) {
            return Err(invalid(&path, "(set)".into(), "is managed by the operator; use the other fields of the spec"));
        }
        let Value::Object(fields) = value else {
            return Err(invalid(&path, value.to_string(), "must be a map of fields"));
        };
        let owned = FIELDS.iter().find(|(name, _)| name == section).map_or(&[][..], |(_, fields)| fields);
        if let Some(field) = fields.keys().find(|field| owned.contains(&field.as_str())) {
            let value = fields[field].to_string();
            return Err(invalid(&format!("{path}.{field}"), value, "is managed by the operator"));
        }
    }
    for (at, rule) in spec.security.principal_rules.iter().enumerate() {
        if !rule.contains(" -> ") {
            return Err(invalid(
                &format!("security.principalRules[{at}]"),
                format!("{rule:?}"),
                "must be REGEX -> REPLACEMENT",
            ));
        }
    }
    Ok(Cluster {
        name: resource.name_any(),
        namespace: resource.namespace().unwrap_or_default(),
        uid: resource.uid().unwrap_or_default(),
        spec,
        storage_bytes,
        initial_nodes,
        bootstrapped,
    })
}
