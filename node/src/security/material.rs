//! Reads certificate, key and CA bundle from files, checks them together, and makes TLS configurations of them.
//!
//! Invariants:
//! - A [`Material`] is complete: every part could be read, and the key belongs to the certificate.
//! - The files of one material were on disk at the same time, as far as two equal reads in a row can show: a Kubernetes
//!   Secret replaces all files at once through a symlink, which may happen during a read.
//!
//! `tls.rs` decides which material is used.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::{ClientAuth, TlsConfig};
use crate::identity::{CertificateFacts, IdentityError};

/// The ALPN protocol (RFC 7301) that nodes offer in place of an HTTP version. It distinguishes connections of nodes
/// from those of clients before any certificate is sent. The first bytes after the handshake contain version and
/// purpose.
pub(super) const PEER_PROTOCOL: &[u8] = b"chronicle-peer";
/// Largest file, in bytes: a CA bundle of thousands fits.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Most attempts to read files that keep changing.
const READINGS_MAX: usize = 5;
/// Pause between two such attempts.
const READING_PAUSE: Duration = Duration::from_millis(20);

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file cannot be read.
    #[error("{field}: {path}: {source}")]
    Read {
        /// Field of the configuration.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content of a file is not valid.
    #[error("{field}: {path}: {rule}")]
    Content {
        /// Field of the configuration.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// The rule that it breaks.
        rule: String,
    },
}

/// The contents of the three files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PemFiles {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

const CERT: &str = "security.tls.cert-file";
const KEY: &str = "security.tls.key-file";
const CA: &str = "security.tls.ca-file";

impl PemFiles {
    /// Reads the files until two reads in a row are equal. Blocks.
    #[expect(
        clippy::disallowed_methods,
        reason = "runs on a thread for blocking calls: between two readings of the files"
    )]
    pub(super) fn read(config: &TlsConfig) -> Result<Self, MaterialError> {
        let mut last = Self::read_once(config);
        for _ in 1..READINGS_MAX {
            let again = Self::read_once(config);
            if let (Ok(last), Ok(again)) = (&last, &again)
                && last == again
            {
                break;
            }
            std::thread::sleep(READING_PAUSE);
            last = again;
        }
        last
    }

    fn read_once(config: &TlsConfig) -> Result<Self, MaterialError> {
        Ok(Self {
            certificate: read_file(CERT, &config.cert_file)?,
            key: read_file(KEY, &config.key_file)?,
            ca: read_file(CA, &config.ca_file)?,
        })
    }
}

fn read_file(field: &'static str, path: &Path) -> Result<Vec<u8>, MaterialError> {
    let error = |source| MaterialError::Read { field, path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(error)?.len();
    if length > FILE_BYTES_MAX {
        let rule = format!("{length} bytes: must be at most {FILE_BYTES_MAX}");
        return Err(MaterialError::Content { field, path: path.to_owned(), rule });
    }
    std::fs::read(path).map_err(error)
}

/// The TLS configurations made from one read of the files.
pub(super) struct Material {
    /// For connections from clients.
    pub(super) clients: Arc<ServerConfig>,
    /// For connections from other nodes.
    pub(super) peers: Arc<ServerConfig>,
    /// For connections to other nodes.
    pub(super) connect: Arc<ClientConfig>,
    /// The certificate that this node sends.
    pub(super) served: CertificateFacts,
    /// The CAs that others are verified against.
    pub(super) authorities: Vec<CertificateFacts>,
}

impl Material {
    /// Parses and checks everything.
    ///
    /// # Errors
    /// A file has no valid content, the key belongs to another certificate, or the certificate is not valid now.
    pub(super) fn build(contents: &PemFiles, config: &TlsConfig) -> Result<Self, MaterialError> {
        let content = |field: &'static str, path: &Path, rule: String| MaterialError::Content {
            field,
            path: path.to_owned(),
            rule,
        };
        let cert_error = |rule: String| content(CERT, &config.cert_file, rule);
        let key_error = |rule: String| content(KEY, &config.key_file, rule);
        let ca_error = |rule: String| content(CA, &config.ca_file, rule);

        let chain = certificates(&contents.certificate).map_err(cert_error)?;
        let served = facts(&chain[0]).map_err(cert_error)?;
        valid_now(&served).map_err(cert_error)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| key_error(format!("must contain a private key in PEM form: {error}")))?;
        let provider = Arc::new(ring::default_provider());
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => key_error("must be the key of security.tls.cert-file".into()),
            other => key_error(format!("cannot be used: {other}")),
        })?;
        let certified = Arc::new(SingleCertAndKey::from(certified));

        let mut roots = RootCertStore::empty();
        let mut authorities = Vec::new();
        for (number, certificate) in certificates(&contents.ca).map_err(ca_error)?.into_iter().enumerate() {
            authorities.push(facts(&certificate).map_err(ca_error)?);
            let rule = |error| ca_error(format!("certificate {} cannot be used as a CA: {error}", number + 1));
            roots.add(certificate).map_err(rule)?;
        }
        let roots = Arc::new(roots);
        let unusable = |error: &dyn std::fmt::Display| ca_error(format!("cannot be used: {error}"));
        let verifier = || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let required = verifier().build().map_err(|error| unusable(&error))?;
        let for_clients = match config.client_auth {
            ClientAuth::Off => WebPkiClientVerifier::no_client_auth(),
            ClientAuth::Optional => verifier().allow_unauthenticated().build().map_err(|error| unusable(&error))?,
            ClientAuth::Required => required.clone(),
        };
        let server = |verifier, protocols: &[&[u8]]| {
            let builder = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&TLS13, &TLS12])
                .map_err(|error| unusable(&error))?;
            let mut server = builder.with_client_cert_verifier(verifier).with_cert_resolver(certified.clone());
            server.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            // No session resumption: connections are long-lived, so it would save little, and every handshake must
            // verify against the current CAs.
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
            Ok::<_, MaterialError>(Arc::new(server))
        };
        let mut connect = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(&error))?
            .with_root_certificates(roots.clone())
            .with_client_cert_resolver(certified.clone());
        connect.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
        connect.resumption = Resumption::disabled();
        Ok(Self {
            clients: server(for_clients, &[b"h2", b"http/1.1"])?,
            peers: server(required, &[PEER_PROTOCOL])?,
            connect: Arc::new(connect),
            served,
            authorities,
        })
    }
}

/// Returns all certificates of a PEM text, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if all.is_empty() => Err("must contain a certificate in PEM form".into()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("must contain certificates in PEM form: {error}")),
    }
}

fn facts(certificate: &CertificateDer<'_>) -> Result<CertificateFacts, String> {
    CertificateFacts::read(certificate).map_err(|error: IdentityError| error.to_string())
}

/// Rejects a certificate that is not valid now: no peer would accept it, so it must not replace a valid one.
fn valid_now(served: &CertificateFacts) -> Result<(), String> {
    let now = now_s();
    if now < served.not_before_s {
        return Err(format!("serial {}: becomes valid only in {} s", served.serial, served.not_before_s - now));
    }
    if now > served.not_after_s {
        return Err(format!("serial {}: expired {} s ago", served.serial, now - served.not_after_s));
    }
    Ok(())
}

/// Seconds since the Unix epoch: validity of certificates is wall-clock time.
#[expect(clippy::disallowed_methods, reason = "certificates are valid by the wall clock")]
fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
