//! Decides which nodes a peer's certificate is valid for.
//!
//! A peer must have a certificate of the cluster's CA, which TLS has verified, *and* that certificate must contain the
//! identity of the node that the peer claims to be. `security.peers.allowed-names` defines how an identity looks.
//! Without it:
//!
//! - a certificate with `chronicle://` URIs (made by `chronicle cert`) is valid for the nodes named in them,
//!   `chronicle://node/NAME`, and for no other node: a client's certificate is not valid for a node;
//! - any other certificate must be a server certificate that is valid for the host in the node's address. cert-manager
//!   and other issuers make such certificates for pods. Nodes that share one certificate can impersonate one another.

use regex::Regex;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use super::principal::{CertificateNames, IdentityError};

/// Beginning of the URI that names a node in certificates of `chronicle cert`.
pub const NODE_URI: &str = "chronicle://node/";
/// Beginning of every URI in certificates of `chronicle cert`.
const OWN_URI: &str = "chronicle://";

/// Whether a certificate can be checked against this name: a DNS name or an IP address.
pub fn is_server_name(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// Returns the host in `HOST:PORT`, without the brackets of an IPv6 address.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The node that a peer claims to be. Unknown parts are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeClaim<'a> {
    /// Name of the node.
    pub name: &'a str,
    /// `HOST:PORT` of the node.
    pub address: &'a str,
}

/// The certificate of a node at the other end of a connection, verified against the cluster's CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    der: CertificateDer<'static>,
    names: CertificateNames,
}

impl PeerCertificate {
    /// Reads a verified certificate.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn new(der: CertificateDer<'static>) -> Result<Self, IdentityError> {
        let names = CertificateNames::read(&der)?;
        Ok(Self { der, names })
    }

    /// Returns its identity for messages.
    pub fn describe(&self) -> &str {
        self.names.identity().unwrap_or("no name")
    }

    fn sans(&self) -> impl Iterator<Item = &str> {
        let names = &self.names;
        names.uris.iter().chain(&names.dns).chain(&names.emails).map(String::as_str)
    }

    /// Whether it is valid for a host by the rules of TLS, wildcards included.
    fn is_valid_for(&self, host: &str) -> bool {
        let Ok(name) = ServerName::try_from(host) else { return false };
        ParsedCertificate::try_from(&self.der).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    }
}

/// Rules for the identity of a node; see the file's header.
#[derive(Debug, Clone, Default)]
pub struct NodeRules {
    allowed: Vec<String>,
    /// Expected in place of the host of every node; empty: each node's own host.
    server_name: String,
}

impl NodeRules {
    /// Makes the rules from `security.peers.allowed-names` and `security.tls.peer-server-name`.
    ///
    /// # Errors
    /// The pattern and the rule that it breaks.
    pub fn new(allowed: &[String], server_name: &str) -> Result<Self, (String, String)> {
        for pattern in allowed {
            if !["{name}", "{host}"].iter().any(|part| pattern.contains(part)) {
                return Err((
                    pattern.clone(),
                    "must contain {name} or {host}: otherwise any node could impersonate any other".into(),
                ));
            }
        }
        Ok(Self { allowed: allowed.to_vec(), server_name: server_name.to_owned() })
    }

    /// Checks that the certificate is valid for the claimed node; the error contains the reason.
    pub fn judge(&self, certificate: &PeerCertificate, claim: NodeClaim<'_>) -> Result<(), String> {
        let host = match self.server_name.as_str() {
            "" => host_of(claim.address),
            name => name,
        };
        if !self.allowed.is_empty() {
            let matches = |pattern: &String| {
                let regex = pattern_regex(pattern, claim.name, host);
                regex.is_some_and(|regex| certificate.sans().any(|san| regex.is_match(san)))
            };
            return match self.allowed.iter().any(matches) {
                true => Ok(()),
                false => Err(format!(
                    "no pattern of security.peers.allowed-names allows the certificate of {:?} for {}",
                    certificate.describe(),
                    shown(claim)
                )),
            };
        }
        let mut own = certificate.names.uris.iter().filter(|uri| uri.starts_with(OWN_URI)).peekable();
        if own.peek().is_some() {
            let mut nodes = own.filter_map(|uri| uri.strip_prefix(NODE_URI));
            return match nodes.any(|name| claim.name.is_empty() || name == claim.name) {
                true => Ok(()),
                false => {
                    Err(format!("the certificate is of {:?}: must be of {}", certificate.describe(), shown(claim)))
                }
            };
        }
        if !certificate.names.server_auth {
            return Err(format!(
                "the certificate of {:?} is a client's: must allow server authentication (extended key usage)",
                certificate.describe()
            ));
        }
        match host.is_empty() || certificate.is_valid_for(host) {
            true => Ok(()),
            false => Err(format!(
                "the certificate of {:?} is not valid for the host of {}",
                certificate.describe(),
                shown(claim)
            )),
        }
    }
}

/// Returns the claim as text for an error.
fn shown(claim: NodeClaim<'_>) -> String {
    match claim {
        NodeClaim { name: "", address: "" } => "a node".into(),
        NodeClaim { name: "", address } => format!("the node at {address:?}"),
        NodeClaim { name, .. } => format!("node {name:?}"),
    }
}

/// Compiles a pattern. An unknown name or host matches any text without a slash.
fn pattern_regex(pattern: &str, name: &str, host: &str) -> Option<Regex> {
    const ANYTHING: &str = "[^/]*";
    let known = |text: &str| if text.is_empty() { ANYTHING.to_owned() } else { regex::escape(text) };
    let (mut regex, mut rest) = (String::from("^"), pattern);
    while !rest.is_empty() {
        let parts = [("{name}", known(name)), ("{host}", known(host)), ("*", ANYTHING.to_owned())];
        let part = parts.into_iter().find_map(|(part, becomes)| Some((rest.strip_prefix(part)?, becomes)));
        (rest, regex) = match part {
            Some((after, becomes)) => (after, regex + &becomes),
            None => {
                let end = rest.chars().next().map_or(rest.len(), char::len_utf8);
                (&rest[end..], regex + &regex::escape(&rest[..end]))
            }
        };
    }
    Regex::new(&(regex + "$")).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};

    use super::*;

    fn certificate(sans: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> PeerCertificate {
        let (uris, hosts): (Vec<&str>, Vec<&str>) = sans.iter().partition(|san| san.contains("://"));
        let mut params = CertificateParams::new(hosts.into_iter().map(str::to_owned).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())));
        params.extended_key_usages = usages.to_vec();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        PeerCertificate::new(certificate.der().clone()).unwrap()
    }

    const N1: NodeClaim<'static> = NodeClaim { name: "n1", address: "n1.log.svc:7400" };
    const SERVER: &[ExtendedKeyUsagePurpose] =
        &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

    #[test]
    fn a_certificate_of_chronicle_cert_speaks_for_the_node_in_it_and_no_other() {
        let rules = NodeRules::default();
        let node = certificate(&["chronicle://node/n1", "n2.log.svc", "127.0.0.1"], SERVER);
        rules.judge(&node, N1).unwrap();
        let other = rules.judge(&node, NodeClaim { name: "n2", address: "n2.log.svc:7400" }).unwrap_err();
        assert!(other.contains("\"n2\""), "its host does not make up for its name: {other}");
        rules.judge(&node, NodeClaim::default()).unwrap();
        let client = certificate(&["chronicle://client/n1", "n1.log.svc"], SERVER);
        assert!(rules.judge(&client, N1).is_err());
        assert!(rules.judge(&client, NodeClaim::default()).is_err());
    }

    #[test]
    fn other_certificates_must_be_servers_and_valid_for_the_host() {
        let rules = NodeRules::default();
        rules.judge(&certificate(&["n1.log.svc"], SERVER), N1).unwrap();
        rules.judge(&certificate(&["*.log.svc"], SERVER), N1).unwrap();
        rules.judge(&certificate(&["10.0.0.1"], &[]), NodeClaim { name: "n1", address: "10.0.0.1:7400" }).unwrap();
        rules.judge(&certificate(&["::1"], &[]), NodeClaim { name: "n1", address: "[::1]:7400" }).unwrap();
        assert!(rules.judge(&certificate(&["n2.log.svc"], SERVER), N1).is_err());
        let client = certificate(&["n1.log.svc"], &[ExtendedKeyUsagePurpose::ClientAuth]);
        assert!(rules.judge(&client, N1).unwrap_err().contains("is a client's"));
        assert!(rules.judge(&client, NodeClaim::default()).is_err());
    }

    #[test]
    fn one_name_may_stand_for_all_hosts() {
        let rules = NodeRules::new(&[], "nodes.log").unwrap();
        rules.judge(&certificate(&["nodes.log"], SERVER), N1).unwrap();
        assert!(rules.judge(&certificate(&["n1.log.svc"], SERVER), N1).is_err());
    }

    #[test]
    fn patterns_replace_the_rule_and_names_in_them_are_taken_literally() {
        let pattern = "spiffe://*/chronicle/main/node/{name}".to_owned();
        let rules = NodeRules::new(&[pattern], "").unwrap();
        rules.judge(&certificate(&["spiffe://prod/chronicle/main/node/n1"], &[]), N1).unwrap();
        assert!(rules.judge(&certificate(&["spiffe://prod/chronicle/main/node/n11"], &[]), N1).is_err());
        assert!(rules.judge(&certificate(&["spiffe://a/b/chronicle/main/node/n1"], &[]), N1).is_err());
        assert!(rules.judge(&certificate(&["chronicle://node/n1"], &[]), N1).is_err());
        let any = NodeClaim { name: "*", address: "" };
        assert!(rules.judge(&certificate(&["spiffe://prod/chronicle/main/node/n1"], &[]), any).is_err());
        let error = NodeRules::new(&["*.log.svc".to_owned()], "").unwrap_err();
        assert!(error.1.contains("{name} or {host}"));
    }

    #[test]
    fn hosts_are_taken_out_of_addresses() {
        assert_eq!((host_of("a.b:7400"), host_of("[::1]:7400"), host_of("10.0.0.1:1")), ("a.b", "::1", "10.0.0.1"));
    }
}
