//! Makes certificates. Uses the clock and random numbers and nothing else; `folder.rs` reads and writes the files.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use chronicle_node::identity::{NODE_URI, Principal};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Name of the authority's files.
pub(super) const AUTHORITY: &str = "ca";

/// Seconds before now at which a certificate becomes valid, because clocks of a cluster differ.
const SKEW_S: i64 = 3600;

/// Period in which a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Validity {
    from_s: i64,
    days: u32,
}

impl Validity {
    /// Begins at a time in milliseconds since the Unix epoch (`None`: an hour ago) and lasts `days` days.
    pub(in crate::cli) fn new(from_ms: Option<i64>, days: u32) -> Self {
        #[expect(clippy::disallowed_methods, reason = "certificates are valid by the wall clock")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        Self { from_s: from_ms.map_or(now - SKEW_S, |ms| ms / 1000), days }
    }

    fn write_to(self, params: &mut CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.from_s.max(0).cast_unsigned());
        params.not_after = params.not_before + Duration::from_secs(u64::from(self.days) * 24 * 3600);
    }
}

/// A certificate and its private key, PEM. Must not be printed.
pub(in crate::cli) struct CertificateAndKey {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// The subject of a certificate.
#[derive(Debug)]
pub(in crate::cli) enum Subject<'a> {
    /// A node: may authenticate to other nodes under its name and serve under its hosts.
    Node {
        /// Name.
        name: &'a str,
        /// DNS names and IP addresses.
        hosts: &'a [String],
    },
    /// A client: cannot serve, and so cannot act as a node.
    Client {
        /// Principal.
        name: &'a str,
    },
}

/// Makes a new certificate authority.
pub(in crate::cli) fn authority(name: &str, validity: Validity) -> anyhow::Result<CertificateAndKey> {
    let mut params = params(name, validity);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    Ok(CertificateAndKey { certificate, key: key.serialize_pem() })
}

/// A certificate authority, which signs certificates.
pub(in crate::cli) struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// Reads a CA from its certificate and key, PEM.
    pub(super) fn read(made: &CertificateAndKey) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(&made.key).context("ca.key: must contain a private key in PEM form")?;
        let issuer = Issuer::from_ca_cert_pem(&made.certificate, key);
        Ok(Self(issuer.context("ca.crt: must contain a CA's certificate in PEM form")?))
    }

    /// Makes a key and a certificate for it.
    pub(in crate::cli) fn issue(&self, subject: &Subject<'_>, validity: Validity) -> anyhow::Result<CertificateAndKey> {
        let (Subject::Node { name, .. } | Subject::Client { name }) = subject;
        ensure!(
            !name.contains(['/', '\\']) && *name != AUTHORITY && Principal::new(name).is_ok(),
            "{name:?}: must be a name without slashes, control characters and surrounding spaces, and neither ca nor anonymous"
        );
        let mut params = params(name, validity);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        match subject {
            Subject::Node { name, hosts } => {
                params.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
                let uri = format!("{NODE_URI}{name}");
                let uri = uri.try_into().with_context(|| format!("{name:?}: must be ASCII for a node"))?;
                params.subject_alt_names = vec![SanType::URI(uri)];
                params.subject_alt_names.extend(CertificateParams::new(hosts.to_vec())?.subject_alt_names);
            }
            Subject::Client { .. } => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(CertificateAndKey { certificate, key: key.serialize_pem() })
    }
}

#[expect(clippy::disallowed_methods, reason = "serial numbers must be unpredictable")]
fn params(name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    validity.write_to(&mut params);
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    // Positive, and without a leading zero byte (RFC 5280, section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(serial.to_vec().into());
    params
}

#[cfg(test)]
mod tests {
    use chronicle_node::identity::CertificateNames;

    use super::*;

    fn signed(subject: &Subject<'_>) -> anyhow::Result<CertificateNames> {
        let authority = Authority::read(&authority("test", Validity::new(None, 1))?)?;
        let made = authority.issue(subject, Validity::new(None, 1))?;
        let pem = x509_parser::pem::parse_x509_pem(made.certificate.as_bytes())?.1;
        Ok(CertificateNames::read(&pem.contents)?)
    }

    #[test]
    fn a_node_is_named_by_uri_and_hosts_and_a_client_by_common_name_alone() {
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let node = signed(&Subject::Node { name: "n1", hosts: &hosts }).unwrap();
        assert_eq!(
            (node.uris, node.dns, node.server_auth),
            (vec!["chronicle://node/n1".into()], vec!["localhost".into()], true)
        );
        let client = signed(&Subject::Client { name: "ann" }).unwrap();
        assert_eq!(client.identity().unwrap(), "ann");
        assert!(!client.server_auth && client.uris.is_empty());
    }

    #[test]
    fn names_that_cannot_be_files_or_principals_are_refused() {
        for name in ["ca", "../ca", "", "a/b", "anonymous", " a", "a\nb"] {
            assert!(signed(&Subject::Client { name }).is_err(), "{name:?}");
        }
        assert!(signed(&Subject::Node { name: "kn\u{f6}", hosts: &[] }).is_err());
    }
}
