//! Reads the identity in a certificate and maps it to a principal.
//!
//! Pure: bytes of a certificate that the TLS layer has verified go in, a [`Principal`] comes out. Other files decide
//! what a principal may do (`broker/`) and which node a certificate is valid for (`peer.rs`).
//!
//! Invariants:
//! - A certificate yields one identity or an error and never panics, whatever its bytes are.
//! - An identity is printable text without spaces at its ends, and never the name of anonymous clients ([`ANONYMOUS`]).
//! - Only a URI SAN yields an identity that looks like a URI: a common name cannot imitate a SPIFFE id.
//!
//! SPIFFE ids: <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>; names in certificates: RFC 5280,
//! section 4.2.1.6.

use std::fmt;
use std::sync::Arc;

use regex::Regex;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Name shown for a client without a certificate. No certificate yields this identity.
pub const ANONYMOUS: &str = "anonymous";

/// Longest identity, in bytes: the length limit of a SPIFFE id.
const IDENTITY_BYTES_MAX: usize = 2048;
/// Most names in one certificate; one with more is rejected.
const NAMES_MAX: usize = 1000;

/// The name of an authenticated client, after the mapping rules. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

impl Principal {
    /// Returns the principal of this name.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`] when the name is empty, too long, not printable, or [`ANONYMOUS`].
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        let unusable = |rule| Err(IdentityError::Unusable { name: shown(name), rule });
        if name.is_empty() || name.trim() != name {
            return unusable("must not be empty nor begin or end with a space");
        }
        if name.len() > IDENTITY_BYTES_MAX {
            return unusable("must be at most 2048 bytes");
        }
        if name.chars().any(char::is_control) {
            return unusable("must not contain control characters");
        }
        if name.eq_ignore_ascii_case(ANONYMOUS) {
            return unusable("must not be the name of clients without a certificate");
        }
        Ok(Self(name.into()))
    }

    /// Returns its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a certificate yields no principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// More than one SPIFFE id, which the standard forbids: the identity would be ambiguous.
    #[error("the certificate has {0} SPIFFE ids: must have one")]
    SeveralSpiffeIds(usize),
    /// It has neither URI, DNS name, email address nor common name.
    #[error(
        "unauthenticated: the client certificate has no principal: must have a SPIFFE id, a DNS name, an email address or a common name"
    )]
    Nameless,
    /// A name that cannot be used.
    #[error("identity {name:?}: {rule}")]
    Unusable {
        /// The name, cut when it is long.
        name: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

/// The names in a certificate, and whether a server may use it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// URI SANs, in their order.
    pub uris: Vec<String>,
    /// DNS SANs, in their order.
    pub dns: Vec<String>,
    /// Email SANs, in their order.
    pub emails: Vec<String>,
    /// The first common name of the subject.
    pub common_name: Option<String>,
    /// Whether a server may use it: its extended key usage allows that, or is absent.
    pub server_auth: bool,
}

/// Serial number and validity of a certificate, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// From when it is valid, in seconds since the Unix epoch.
    pub not_before_s: i64,
    /// Until when it is valid, in seconds since the Unix epoch.
    pub not_after_s: i64,
}

/// Encryption of a node's data port, as the node reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortEncryption {
    /// Serial number of its certificate, hexadecimal; empty: plaintext.
    pub certificate_serial: String,
    /// Until when the certificate is valid, in seconds since the Unix epoch.
    pub certificate_not_after_s: i64,
}

impl From<CertificateFacts> for PortEncryption {
    fn from(served: CertificateFacts) -> Self {
        Self { certificate_serial: served.serial, certificate_not_after_s: served.not_after_s }
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    let malformed = |why: String| IdentityError::Malformed(why);
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    match rest.len() {
        0 => Ok(certificate),
        extra => Err(malformed(format!("{extra} bytes after its end"))),
    }
}

impl CertificateNames {
    /// Reads a certificate in DER form.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`].
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let malformed = |error: x509_parser::error::X509Error| IdentityError::Malformed(error.to_string());
        let certificate = parse(der)?;
        let mut names = Self::default();
        if let Some(extension) = certificate.subject_alternative_name().map_err(malformed)? {
            let all = &extension.value.general_names;
            if all.len() > NAMES_MAX {
                return Err(IdentityError::Malformed(format!("{} names: must be at most {NAMES_MAX}", all.len())));
            }
            for name in all {
                match name {
                    GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                    GeneralName::DNSName(dns) => names.dns.push((*dns).to_owned()),
                    GeneralName::RFC822Name(email) => names.emails.push((*email).to_owned()),
                    GeneralName::Invalid(..) => return Err(IdentityError::Malformed("a name is not text".into())),
                    _ => {}
                }
            }
        }
        if let Some(name) = certificate.subject().iter_common_name().next() {
            names.common_name = Some(name.as_str().map_err(malformed)?.to_owned());
        }
        let usage = certificate.extended_key_usage().map_err(malformed)?;
        names.server_auth = usage.is_none_or(|usage| usage.value.server_auth || usage.value.any);
        Ok(names)
    }

    /// Returns the identity before any mapping rule: the SPIFFE id (or the id that `chronicle cert` gives to a node),
    /// else the first DNS name, else the first email address, else the common name.
    ///
    /// # Errors
    /// [`IdentityError::SeveralSpiffeIds`], [`IdentityError::Nameless`], [`IdentityError::Unusable`].
    pub fn identity(&self) -> Result<&str, IdentityError> {
        let mut ids = self.uris.iter().filter(|uri| has_scheme(uri, "spiffe") || has_scheme(uri, "chronicle"));
        if let Some(id) = ids.next() {
            return match ids.count() {
                0 => Ok(id),
                more => Err(IdentityError::SeveralSpiffeIds(more + 1)),
            };
        }
        let names = self.dns.first().or(self.emails.first()).or(self.common_name.as_ref());
        let name = names.ok_or(IdentityError::Nameless)?;
        if name.contains("://") {
            return Err(IdentityError::Unusable { name: shown(name), rule: "only a URI SAN may be a URI" });
        }
        Ok(name)
    }
}

impl CertificateFacts {
    /// Reads a certificate in DER form.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`].
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        let serial = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        let validity = certificate.validity();
        let (not_before_s, not_after_s) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Ok(Self { serial, not_before_s, not_after_s })
    }
}

/// Compares without case, as RFC 3986, section 3.1 says.
fn has_scheme(uri: &str, scheme: &str) -> bool {
    uri.split_once("://").is_some_and(|(found, _)| found.eq_ignore_ascii_case(scheme))
}

/// Returns a name, cut to a length that an error may contain.
fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}

/// Ordered rules that map the identity in a certificate to the principal that ACLs use. The first rule that matches the
/// whole identity applies; without a match the identity is the principal.
#[derive(Debug, Clone, Default)]
pub struct PrincipalRules(Vec<(Regex, String)>);

impl PrincipalRules {
    /// Compiles rules of the form `REGEX -> REPLACEMENT`, where `$1` or `${name}` in the replacement stands for a
    /// group.
    ///
    /// # Errors
    /// The rule and the reason why it is not valid.
    pub fn new<S: AsRef<str>>(rules: &[S]) -> Result<Self, (String, String)> {
        let rule = |text: &str| -> Result<(Regex, String), String> {
            let (pattern, replacement) = text.split_once(" -> ").ok_or("must be REGEX -> REPLACEMENT")?;
            let regex = Regex::new(&format!("^(?:{})$", pattern.trim()))
                .map_err(|error| format!("must be a regular expression: {}", one_line(&error)))?;
            match replacement.trim() {
                "" => Err("must have a replacement".into()),
                replacement => Ok((regex, replacement.to_owned())),
            }
        };
        let rules = rules.iter().map(AsRef::as_ref);
        rules.map(|text| rule(text).map_err(|why| (text.to_owned(), why))).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the principal of a verified certificate in DER form.
    ///
    /// # Errors
    /// The certificate has no identity, or a rule maps it to an unusable name.
    pub fn principal(&self, der: &[u8]) -> Result<Principal, IdentityError> {
        let names = CertificateNames::read(der)?;
        self.apply(names.identity()?)
    }

    /// Returns the principal of an identity.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`].
    pub fn apply(&self, identity: &str) -> Result<Principal, IdentityError> {
        // An identity that is no valid principal is rejected before a rule can map it to a valid one.
        let plain = Principal::new(identity)?;
        let Some((regex, replacement)) = self.0.iter().find(|(regex, _)| regex.is_match(identity)) else {
            return Ok(plain);
        };
        Principal::new(&regex.replace(identity, replacement.as_str()))
    }
}

/// Returns an error of the regex crate without its multi-line excerpt of the pattern.
fn one_line(error: &regex::Error) -> String {
    error.to_string().lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};

    use super::*;

    fn certificate(common_name: Option<&str>, sans: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = sans.to_vec();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    fn email(text: &str) -> SanType {
        SanType::Rfc822Name(text.try_into().unwrap())
    }

    fn principal(der: &[u8]) -> Result<String, IdentityError> {
        PrincipalRules::default().principal(der).map(|principal| principal.to_string())
    }

    #[test]
    fn the_most_specific_name_of_a_certificate_is_its_identity() {
        let spiffe = "spiffe://prod/ns/shop/sa/orders";
        let all = [dns("orders.shop"), uri("https://example.org"), uri(spiffe), email("orders@example.org")];
        assert_eq!(principal(&certificate(Some("orders"), &all)).unwrap(), spiffe);
        assert_eq!(principal(&certificate(Some("orders"), &all[..2])).unwrap(), "orders.shop");
        assert_eq!(principal(&certificate(Some("orders"), &[email("o@example.org")])).unwrap(), "o@example.org");
        assert_eq!(principal(&certificate(Some("orders"), &[])).unwrap(), "orders");
        let node = [uri("chronicle://node/n1"), dns("localhost")];
        assert_eq!(principal(&certificate(Some("n1"), &node)).unwrap(), "chronicle://node/n1");
    }

    #[test]
    fn a_certificate_without_a_principal_or_with_too_many_is_refused() {
        assert_eq!(principal(&certificate(None, &[])), Err(IdentityError::Nameless));
        let two = certificate(None, &[uri("spiffe://a/b"), uri("SPIFFE://a/c")]);
        assert_eq!(principal(&two), Err(IdentityError::SeveralSpiffeIds(2)));
        for name in ["anonymous", "Anonymous", "", " orders", "a\nb", "spiffe://prod/admin", "chronicle://node/n1"] {
            let refused = principal(&certificate(Some(name), &[]));
            assert!(matches!(refused, Err(IdentityError::Unusable { .. })), "{name:?}: {refused:?}");
        }
        assert!(principal(&certificate(Some(&"x".repeat(3000)), &[])).is_err());
    }

    #[test]
    fn the_first_rule_that_matches_the_whole_identity_wins() {
        let rules = PrincipalRules::new(&[
            "spiffe://prod/ns/([^/]+)/sa/(.+) -> $1/$2",
            "(.+)@example\\.org -> ${1}",
            ".*@.* -> stranger",
        ])
        .unwrap();
        let map = |identity: &str| rules.apply(identity).unwrap().to_string();
        assert_eq!(map("spiffe://prod/ns/shop/sa/orders"), "shop/orders");
        assert_eq!(map("ann@example.org"), "ann");
        assert_eq!(map("ann@example.org.evil.net"), "stranger", "a rule matches all of it or nothing");
        assert_eq!(map("orders"), "orders");
    }

    #[test]
    fn a_rule_does_not_make_a_principal_anonymous() {
        let rules = PrincipalRules::new(&["(.*)x -> $1", "ann -> anonymous"]).unwrap();
        assert!(rules.apply("x").is_err(), "the empty name");
        assert!(rules.apply("ann").is_err());
        assert!(rules.apply("anonymous").is_err());
    }

    #[test]
    fn rules_that_cannot_be_read_are_named() {
        for (rule, why) in [
            ("orders", "must be REGEX -> REPLACEMENT"),
            ("( -> x", "must be a regular expression: unclosed group"),
            ("a ->  ", "must have a replacement"),
        ] {
            assert_eq!(PrincipalRules::new(&[rule]).unwrap_err(), (rule.to_owned(), why.to_owned()));
        }
    }

    #[test]
    fn facts_and_usage_are_read() {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.serial_number = Some(vec![0x0a, 0xbc].into());
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2026, 1, 3);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let facts = CertificateFacts::read(&der).unwrap();
        assert_eq!(facts.serial, "0abc");
        assert_eq!(facts.not_after_s - facts.not_before_s, 24 * 3600);
        assert!(!CertificateNames::read(&der).unwrap().server_auth);
        params.extended_key_usages.clear();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        assert!(CertificateNames::read(&der).unwrap().server_auth, "no usage is any usage");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_that_are_no_certificate_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(principal(&bytes).is_err());
        }

        #[test]
        fn a_damaged_certificate_never_panics(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let der = certificate(Some("orders"), &[uri("spiffe://a/b"), dns("orders.shop"), email("a@b")]);
            let mut damaged = der.clone();
            damaged[at.index(der.len())] = byte;
            let _ = principal(&damaged);
            let _ = CertificateFacts::read(&damaged);
            prop_assert!(principal(&der[..cut.index(der.len())]).is_err());
        }
    }
}
