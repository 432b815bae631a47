//! Reads the Secrets with certificates, computes the trusted CAs, and rotates a CA.
//!
//! A rotation has three steps, and each starts only after the one before is confirmed:
//! 1. Nodes, operator and clients trust the old and the new CA.
//! 2. cert-manager reissues the certificates with the new CA, and the nodes serve them.
//! 3. A day later the old CA is no longer trusted.
//!
//! Kubelets update a mounted Secret or ConfigMap within two minutes. The operator cannot observe the mounts of client pods, so step 1 ends
//! after a fixed time: [`Settings::trust_settles_seconds`].
//!
//! Neighbours: `build/certificates.rs` renders the objects, `x509.rs` parses certificates, `controller/user.rs` follows with the
//! certificates of clients.
//!
//! [`Settings::trust_settles_seconds`]: crate::build::Settings::trust_settles_seconds

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::json;

use super::x509::{self, same_serial, serial};
use crate::admin::{Target, TlsMaterial};
use crate::api::IssuerKind;
use crate::build::{Cluster, Settings, TrustInput, trust_bundle};
use crate::controller::{Context, FIELD_MANAGER, LiveObjects, ReconcileError};
use crate::plan::ClusterView;

/// Seconds that a former CA stays trusted after the new one: one day, in which clients load their new certificates.
const CA_OVERLAP_SECONDS: i64 = 86_400;

/// Seconds within which nodes normally serve a new certificate. After that the condition CertificatesValid is false.
const SERVED_AFTER_SECONDS: i64 = 180;

/// State of the certificates of a cluster.
#[derive(Debug, Default)]
pub struct Certificates {
    encrypted: bool,
    node: Option<Secret>,
    operator: Option<Secret>,
    ca: Option<Secret>,
    trusted: Option<String>,
    /// Last change of the trusted CAs, in Unix seconds; 0: not known.
    trusted_since: i64,
    /// Last change of the trusted CAs or of the certificate of the nodes, in Unix seconds; 0: not known.
    changed_at: i64,
    now: i64,
    missing: Option<(&'static str, String)>,
    /// Whether every node serves the certificate in the Secret; false if not known.
    served: bool,
    stale: Vec<String>,
}

impl Certificates {
    /// Reads the Secrets and the trust ConfigMap.
    ///
    /// # Errors
    /// The API server did not respond.
    pub async fn read(
        context: &Context,
        cluster: &Cluster,
        live: &LiveObjects,
        cert_manager: bool,
    ) -> Result<Self, ReconcileError> {
        let mut known = Self { encrypted: cluster.encrypted(), ..Self::default() };
        if !known.encrypted {
            return Ok(known);
        }
        let secrets: Api<Secret> = Api::namespaced(context.client(), &cluster.namespace);
        let get =
            async |name: &str| secrets.get_opt(name).await.map_err(ReconcileError::kube(format!("get Secret {name}")));
        known.node = get(&cluster.node_secret()).await?;
        known.operator = get(&cluster.operator_secret()).await?;
        if let Some(name) = cluster.ca_secret() {
            known.ca = get(&name).await?;
        }
        let map = live.get(&("ConfigMap".to_owned(), cluster.trust_config_map()));
        known.trusted = map.and_then(|map| map.data["data"]["ca.crt"].as_str().map(str::to_owned));
        // The time in managedFields is that of our last change: an unchanged ConfigMap is not written.
        known.trusted_since = map.map_or(0, |map| written_at(&map.metadata, Some(FIELD_MANAGER)));
        let issued_at = known.node.as_ref().map_or(0, |secret| written_at(&secret.metadata, None));
        known.changed_at = known.trusted_since.max(issued_at);
        known.now = context.now().as_second();
        let given = cluster.spec.security.tls.secrets.is_some();
        for (name, secret, keys) in [
            (cluster.node_secret(), &known.node, &["tls.crt", "tls.key", "ca.crt"][..]),
            (cluster.operator_secret(), &known.operator, &["tls.crt", "tls.key", "ca.crt"][..]),
        ] {
            let why = match secret {
                None if given => {
                    ("SecretMissing", format!("Secret {name} is missing: create it with tls.crt, tls.key and ca.crt"))
                }
                None if !cert_manager => (
                    "CertManagerMissing",
                    format!(
                        "cert-manager is not installed, so Secret {name} cannot be issued: install it, or provide certificates in \
                         spec.security.tls.secrets"
                    ),
                ),
                None => pending(context, cluster, live, &name).await?,
                Some(secret) => match keys.iter().find(|key| text(secret, key).is_none()) {
                    None => continue,
                    Some(key) => ("SecretIncomplete", format!("Secret {name} has no {key}")),
                },
            };
            known.missing = known.missing.or(Some(why));
        }
        Ok(known)
    }

    /// Returns whether the operator can connect to the nodes.
    pub fn usable(&self) -> bool {
        !self.encrypted || self.missing.is_none()
    }

    /// Returns why pods cannot start yet.
    pub fn not_ready(&self) -> Option<String> {
        self.missing.as_ref().map(|(_, why)| why.clone())
    }

    /// Returns the problem to report: reason and message of a condition.
    pub(super) fn trouble(&self, settings: &Settings) -> Option<(&'static str, String)> {
        if let Some((reason, why)) = &self.missing {
            return Some((reason, why.clone()));
        }
        self.not_served().filter(|_| !self.settling(settings)).map(|why| ("NotServedYet", why))
    }

    /// Returns a message with the nodes that still serve a previous certificate; `None`: there are none, or that is not known.
    pub(super) fn not_served(&self) -> Option<String> {
        (!self.stale.is_empty()).then(|| format!("nodes still serve a previous certificate: {}", self.stale.join(", ")))
    }

    /// Returns whether the cluster uses TLS.
    pub fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// Compares the certificates that nodes serve with the one in the Secret.
    pub fn compare_served(&mut self, view: Option<&ClusterView>) {
        let serial = self.node.as_ref().and_then(|secret| text(secret, "tls.crt")).and_then(|pem| serial(&pem));
        let (Some(serial), Some(view)) = (serial, view) else { return };
        let alive = view.nodes.iter().filter(|node| node.alive);
        self.stale = alive
            .clone()
            .filter(|node| node.certificate_serial.as_ref().is_some_and(|served| !same_serial(served, &serial)))
            .map(|node| node.name.clone())
            .collect();
        let all_known = alive.clone().all(|node| node.certificate_serial.is_some());
        self.served = self.stale.is_empty() && all_known && view.nodes.iter().all(|node| node.alive);
    }

    /// Returns the PEM text of the CAs that nodes should trust.
    pub fn trust(&self) -> Option<String> {
        let of = |secret: &Option<Secret>, key: &str| secret.as_ref().and_then(|secret| text(secret, key));
        let current: Vec<String> = [of(&self.ca, "tls.crt"), of(&self.node, "ca.crt"), of(&self.operator, "ca.crt")]
            .into_iter()
            .flatten()
            .collect();
        let one = current.windows(2).all(|pair| pair[0].trim() == pair[1].trim());
        let settled =
            one && self.served && self.trusted_since > 0 && self.now - self.trusted_since >= CA_OVERLAP_SECONDS;
        trust_bundle(&TrustInput { settled, current, trusted: self.trusted.clone() })
    }

    /// Returns how to connect to the nodes.
    pub fn target(&self, cluster: &Cluster, pods: i32) -> Target {
        let tls = self.encrypted.then(|| {
            let of = |key: &str| self.operator.as_ref().and_then(|secret| text(secret, key)).unwrap_or_default();
            TlsMaterial {
                // The operator trusts the same CAs as the nodes, so that it can connect to all of them during a rotation.
                ca: self.trust().unwrap_or_default().into_bytes(),
                certificate: of("tls.crt").into_bytes(),
                key: of("tls.key").into_bytes(),
            }
        });
        Target { nodes: cluster.pod_addresses(pods), tls }
    }

    /// Returns whether a change is being distributed to pods and nodes, and is within its normal time.
    pub(super) fn settling(&self, settings: &Settings) -> bool {
        let another = match (&self.ca, &self.node) {
            (Some(ca), Some(node)) => {
                let trimmed = |secret: &Secret, key: &str| text(secret, key).map(|text| text.trim().to_owned());
                trimmed(ca, "tls.crt") != trimmed(node, "ca.crt")
            }
            _ => false,
        };
        (another || !self.stale.is_empty())
            && self.now - self.changed_at < settings.trust_settles_seconds + SERVED_AFTER_SECONDS
    }

    /// Requests new certificates from a new CA, once it is trusted everywhere. Returns the progress of the rotation; `None`: there is none.
    ///
    /// # Errors
    /// The API server rejected the request or did not respond.
    pub(super) async fn renew(
        &self,
        context: &Context,
        cluster: &Cluster,
        live: &LiveObjects,
    ) -> Result<Option<String>, ReconcileError> {
        if !self.encrypted {
            return Ok(None);
        }
        let ca = self.ca.as_ref().and_then(|secret| text(secret, "tls.crt"));
        let (Some(ca), Some(trusted)) = (ca, &self.trusted) else { return Ok(None) };
        let former = |secret: &Option<Secret>| {
            let issued_by = secret.as_ref().and_then(|secret| text(secret, "ca.crt"));
            issued_by.is_some_and(|issued_by| issued_by.trim() != ca.trim())
        };
        let outdated: Vec<&str> = [("node", &self.node), ("operator", &self.operator)]
            .into_iter()
            .filter(|(_, secret)| former(secret))
            .map(|(name, _)| name)
            .collect();
        if outdated.is_empty() {
            return Ok(None);
        }
        let known_for = self.now - self.trusted_since;
        if !trusted.contains(ca.trim()) || known_for < context.settings().trust_settles_seconds {
            return Ok(Some("distributing the new CA to nodes and clients".into()));
        }
        for name in outdated {
            let name = format!("{}-{name}", cluster.name);
            let Some(certificate) = live.get(&("Certificate".to_owned(), name.clone())) else { continue };
            if reissue(context, &cluster.namespace, certificate).await? {
                tracing::info!(certificate = name, "requested a certificate from the new CA");
            }
        }
        Ok(Some("reissuing certificates with the new CA".into()))
    }
}

/// Returns the time of the last write to the fields of an object, by one manager or any, in Unix seconds; 0: not known.
fn written_at(metadata: &ObjectMeta, manager: Option<&str>) -> i64 {
    let entries = metadata.managed_fields.iter().flatten();
    let wanted = entries.filter(|entry| manager.is_none() || entry.manager.as_deref() == manager);
    let written = wanted.filter_map(|entry| entry.time.as_ref()).map(|time| time.0.as_second()).max();
    written.or_else(|| metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())).unwrap_or(0)
}

/// Returns how to connect to the nodes of a cluster, for topics and users. `None`: certificates are missing.
///
/// # Errors
/// The API server did not respond.
pub async fn operator_target(
    context: &Context,
    cluster: &Cluster,
    size: i32,
) -> Result<Option<Target>, ReconcileError> {
    let mut live = LiveObjects::new();
    let maps: Api<ConfigMap> = Api::namespaced(context.client(), &cluster.namespace);
    if cluster.encrypted() {
        let name = cluster.trust_config_map();
        let map = maps.get_opt(&name).await.map_err(ReconcileError::kube(format!("get ConfigMap {name}")))?;
        live.extend(map.map(|map| (("ConfigMap".to_owned(), name), crate::build::dynamic(&map))));
    }
    let certificates = Certificates::read(context, cluster, &live, true).await?;
    Ok(certificates.usable().then(|| certificates.target(cluster, size)))
}

/// Requests a reissue from cert-manager, as `cmctl renew` does: with the condition `Issuing`. Returns false if a request is pending.
pub(in crate::controller) async fn reissue(
    context: &Context,
    namespace: &str,
    certificate: &DynamicObject,
) -> Result<bool, ReconcileError> {
    let mut conditions = certificate.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let issuing = |condition: &serde_json::Value| condition["type"] == "Issuing";
    if conditions.iter().any(|condition| issuing(condition) && condition["status"] == "True") {
        return Ok(false);
    }
    conditions.retain(|condition| !issuing(condition));
    conditions.push(json!({
        "type": "Issuing",
        "status": "True",
        "reason": "CaChanged",
        "message": "the certificate authority was replaced",
        "lastTransitionTime": context.now().to_string(),
    }));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
    let api: Api<DynamicObject> = Api::namespaced_with(context.client(), namespace, &resource);
    let patch = json!({
        "metadata": {"resourceVersion": certificate.resource_version()},
        "status": {"conditions": conditions},
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let name = certificate.name_any();
    let patched = api.patch_status(&name, &params, &Patch::Merge(patch)).await;
    patched.map(|_| true).map_err(ReconcileError::kube(format!("reissue Certificate {name}")))
}

/// Returns why cert-manager has not issued a Secret yet: reason and message of a condition, from the issuer if that is not ready.
async fn pending(
    context: &Context,
    cluster: &Cluster,
    live: &LiveObjects,
    secret: &str,
) -> Result<(&'static str, String), ReconcileError> {
    let given = cluster.spec.security.tls.issuer_ref.as_ref();
    let (kind, name) = match given {
        Some(given) if given.kind == IssuerKind::ClusterIssuer => ("ClusterIssuer", given.name.clone()),
        Some(given) => ("Issuer", given.name.clone()),
        None => ("Issuer", crate::build::issuer_name(cluster)),
    };
    let issuer = match given {
        None => live.get(&("Issuer".to_owned(), name.clone())).cloned(),
        Some(_) => {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", kind));
            let api: Api<DynamicObject> = match kind {
                "ClusterIssuer" => Api::all_with(context.client(), &resource),
                _ => Api::namespaced_with(context.client(), &cluster.namespace, &resource),
            };
            match api.get_opt(&name).await {
                Ok(None) => {
                    let why = format!(
                        "{kind} {name}, which should issue Secret {secret}, does not exist: create it, or create a new cluster with \
                         another spec.security.tls.issuerRef"
                    );
                    return Ok(("IssuerMissing", why));
                }
                Ok(found) => found,
                // No right to read the issuer: report the message of the Certificate instead.
                Err(kube::Error::Api(status)) if status.is_forbidden() => None,
                Err(error) => return Err(ReconcileError::kube(format!("get {kind} {name}"))(error)),
            }
        }
    };
    let ready = |object: &DynamicObject| {
        let conditions = object.data["status"]["conditions"].as_array()?;
        conditions.iter().find(|condition| condition["type"] == "Ready").cloned()
    };
    let message_of =
        |condition: &serde_json::Value| condition["message"].as_str().unwrap_or("no reason reported").to_owned();
    if let Some(condition) = issuer.as_ref().and_then(ready).filter(|condition| condition["status"] == "False") {
        let why =
            format!("{kind} {name}, which should issue Secret {secret}, is not ready: {}", message_of(&condition));
        return Ok(("IssuerNotReady", why));
    }
    let of = |object: &&DynamicObject| object.data["spec"]["secretName"] == secret;
    let mut certificates = live.iter().filter(|((kind, _), _)| kind == "Certificate").map(|(_, object)| object);
    let why = match certificates.find(of).and_then(ready) {
        Some(condition) => {
            format!("cert-manager has not issued Secret {secret} ({kind} {name}): {}", message_of(&condition))
        }
        None => format!("waiting for cert-manager to issue Secret {secret} ({kind} {name}); is cert-manager running?"),
    };
    Ok(("CertificatePending", why))
}

pub(in crate::controller) fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    String::from_utf8(bytes.clone()).ok().filter(|text| !text.trim().is_empty())
}

/// Returns when the certificate in a Secret became valid, as in [`x509::not_before`].
pub(in crate::controller) fn issued_at(secret: &Secret) -> Option<String> {
    x509::not_before(&text(secret, "tls.crt")?)
}
