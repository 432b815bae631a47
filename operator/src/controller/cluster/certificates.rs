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

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::json;

use crate::admin::{Target, TlsMaterial};
use crate::api::IssuerKind;
use crate::build::{Cluster, Settings, TrustInput, trust_bundle};
use crate::controller::{Context, FIELD_MANAGER, ReconcileError};
use crate::plan::ClusterView;

/// Seconds that a former CA stays trusted after the new one: one day, in which clients load their new certificates.
const CA_OVERLAP_SECONDS: i64 = 86_400;

/// Seconds within which nodes normally serve a new certificate. After that the condition CertificatesValid is false.
const SERVED_AFTER_SECONDS: i64 = 180;

type Live = BTreeMap<(String, String), DynamicObject>;

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
        live: &Live,
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
    pub fn judge(&mut self, view: Option<&ClusterView>) {
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
        Target { nodes: super::addresses(cluster, pods), tls }
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
        live: &Live,
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
    let mut live = Live::new();
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
    live: &Live,
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
    let words =
        |condition: &serde_json::Value| condition["message"].as_str().unwrap_or("no reason reported").to_owned();
    if let Some(condition) = issuer.as_ref().and_then(ready).filter(|condition| condition["status"] == "False") {
        let why = format!("{kind} {name}, which should issue Secret {secret}, is not ready: {}", words(&condition));
        return Ok(("IssuerNotReady", why));
    }
    let of = |object: &&DynamicObject| object.data["spec"]["secretName"] == secret;
    let mut certificates = live.iter().filter(|((kind, _), _)| kind == "Certificate").map(|(_, object)| object);
    let why = match certificates.find(of).and_then(ready) {
        Some(condition) => {
            format!("cert-manager has not issued Secret {secret} ({kind} {name}): {}", words(&condition))
        }
        None => format!("waiting for cert-manager to issue Secret {secret} ({kind} {name}); is cert-manager running?"),
    };
    Ok(("CertificatePending", why))
}

pub(in crate::controller) fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    String::from_utf8(bytes.clone()).ok().filter(|text| !text.trim().is_empty())
}

/// Begin of the life of the first certificate in a Secret, `YYYYMMDDhhmmssZ`: the order of such texts is that of time.
pub(in crate::controller) fn issued_at(secret: &Secret) -> Option<String> {
    let der = der(&text(secret, "tls.crt")?)?;
    let (_, rest) = element(numbered(&der)?, 0x02)?;
    let (_algorithm, rest) = element(rest, 0x30)?;
    let (_issuer, rest) = element(rest, 0x30)?;
    let (validity, _) = element(rest, 0x30)?;
    let said = |tag: u8| Some(std::str::from_utf8(element(validity, tag)?.0).ok()?.to_owned());
    // Two digits of the year until 2049, four from then on.
    match said(0x17) {
        Some(short) if short.as_str() < "50" => Some(format!("20{short}")),
        Some(short) => Some(format!("19{short}")),
        None => said(0x18),
    }
}

/// Serial number of the first certificate in a PEM text, hexadecimal in lower case.
fn serial(pem: &str) -> Option<String> {
    let der = der(pem)?;
    let (number, _) = element(numbered(&der)?, 0x02)?;
    Some(number.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The first certificate in a PEM text.
fn der(pem: &str) -> Option<Vec<u8>> {
    let body = pem.split("-----BEGIN CERTIFICATE-----").nth(1)?.split("-----END CERTIFICATE-----").next()?;
    let compact: String = body.split_whitespace().collect();
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, compact).ok()
}

/// What is signed of a certificate, from its serial number on. Certificates are read only as far as they must be (RFC 5280, 4.1).
fn numbered(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(der, 0x30)?;
    let (to_be_signed, _) = element(certificate, 0x30)?;
    // The version is there unless it is the first.
    Some(element(to_be_signed, 0xa0).map_or(to_be_signed, |(_, rest)| rest))
}

/// The content of the DER element with this tag at the start, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Leading zeros and separators do not matter.
fn same_serial(a: &str, b: &str) -> bool {
    let normal = |text: &str| {
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_lowercase();
        digits.trim_start_matches('0').to_owned()
    };
    normal(a) == normal(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_from_outside_are_read_or_refused() {
        // SEQUENCE { SEQUENCE { [0] { INTEGER 2 }, INTEGER 00ab } }
        let der = [0x30, 0x0b, 0x30, 0x09, 0xa0, 0x03, 0x02, 0x01, 0x02, 0x02, 0x02, 0x00, 0xab];
        let pem = |der: &[u8]| {
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        };
        assert_eq!(serial(&pem(&der)).as_deref(), Some("00ab"));
        assert!(same_serial("00ab", "AB") && same_serial("0:ab", "ab") && !same_serial("ab", "ac"));
        for cut in 0..der.len() {
            assert_eq!(serial(&pem(&der[..cut])), None, "cut at {cut}");
        }
        assert_eq!(serial("no certificate"), None);
    }

    #[test]
    fn the_younger_of_two_certificates_is_known() {
        let secret = |tag: u8, time: &str| {
            let mut validity = vec![0x30, time.len() as u8 + 2, tag, time.len() as u8];
            validity.extend(time.as_bytes());
            // INTEGER 1, two empty SEQUENCEs, the validity.
            let mut signed = vec![0x02, 0x01, 0x01, 0x30, 0x00, 0x30, 0x00];
            signed.extend(validity);
            let wrap = |content: Vec<u8>| [vec![0x30, content.len() as u8], content].concat();
            let der = wrap(wrap(signed));
            let pem = |der: &[u8]| {
                let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
                let text = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
                let data = [("tls.crt".to_owned(), k8s_openapi::ByteString(text.into_bytes()))];
                Secret { data: Some(data.into()), ..Secret::default() }
            };
            for cut in 0..der.len() {
                assert_eq!(issued_at(&pem(&der[..cut])), None, "cut at {cut}");
            }
            issued_at(&pem(&der)).unwrap()
        };
        let times = [secret(0x17, "991231235959Z"), secret(0x17, "261122000000Z"), secret(0x18, "20500101000000Z")];
        assert_eq!(times, ["19991231235959Z", "20261122000000Z", "20500101000000Z"]);
        assert!(times.is_sorted());
    }
}
