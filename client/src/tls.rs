//! TLS: a [`Connector`] that encrypts the connections of another one.
//!
//! Invariants:
//! - The client talks only to a server whose certificate is issued by one of the given CAs and valid for the host of the
//!   address.
//! - Files are read for every new connection, so that renewed certificates need no restart. While they are invalid (half
//!   written, for example), the last valid ones stay in use.
//!
//! Names only `connector.rs`; it does not know what runs over the connection.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::connector::{BoxedIo, Connector};

/// PEM text, or the file that holds it.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file, read again for every new connection.
    File(PathBuf),
    /// The text itself.
    Text(Vec<u8>),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            // It may be a key.
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
        }
    }
}

impl From<PathBuf> for Pem {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl Pem {
    async fn read(&self, what: &str) -> io::Result<Vec<u8>> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                let named =
                    |error: io::Error| io::Error::new(error.kind(), format!("{what}: {}: {error}", path.display()));
                tokio::fs::read(path).await.map_err(named)
            }
        }
    }
}

/// How a client encrypts its connections and authenticates itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates of the CAs that nodes are verified against.
    pub ca: Pem,
    /// The client's certificate chain (without the CA) and its private key; `None`: the client is anonymous.
    pub identity: Option<(Pem, Pem)>,
    /// Name that the nodes' certificates must be valid for; `None`: the host in each node's address.
    pub server_name: Option<String>,
}

impl TlsConfig {
    /// Nodes are verified against these CAs, and the client is anonymous.
    pub fn new(ca: impl Into<Pem>) -> Self {
        Self { ca: ca.into(), identity: None, server_name: None }
    }

    /// Sets the client's certificate and its private key.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Pem>, key: impl Into<Pem>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Sets one name that the certificates of all nodes must be valid for.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    async fn read(&self) -> io::Result<Contents> {
        let identity = match &self.identity {
            Some((certificate, key)) => Some((certificate.read("certificate").await?, key.read("key").await?)),
            None => None,
        };
        Ok(Contents { ca: self.ca.read("CA").await?, identity })
    }
}

/// PEM texts as read.
#[derive(PartialEq, Eq)]
struct Contents {
    ca: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

fn invalid(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.to_string())
}

impl Contents {
    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("CA", &self.ca)? {
            roots.add(certificate).map_err(|error| invalid(format!("CA: cannot be used: {error}")))?;
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(invalid)?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("certificate", certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| invalid(format!("key: must hold a private key in PEM form: {error}")))?;
                let certified = CertifiedKey::from_der(chain, key, &provider)
                    .map_err(|error| invalid(format!("key: does not match the certificate: {error}")))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the check of the current certificates.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn certificates(what: &str, pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| invalid(format!("{what}: must hold certificates in PEM form: {error}")))?;
    match all.is_empty() {
        true => Err(invalid(format!("{what}: must hold a certificate in PEM form"))),
        false => Ok(all),
    }
}

/// The host in `HOST:PORT`, without the brackets of an IPv6 address.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The last valid contents, and the configuration made from them.
type Working = Mutex<Option<(Contents, Arc<ClientConfig>)>>;

/// Encrypts the connections that another connector opens. A connection fails with an error that names the file that cannot be
/// read or used, or the reason why the node's certificate is not trusted.
pub fn tls_connector(plain: Connector, tls: TlsConfig) -> Connector {
    let shared = Arc::new((tls, Working::default()));
    Arc::new(move |address| {
        let (shared, connecting) = (shared.clone(), plain(address.clone()));
        Box::pin(async move {
            let (tls, working) = &*shared;
            let config = current(tls, working).await?;
            let host = tls.server_name.as_deref().unwrap_or_else(|| host_of(&address));
            let name = ServerName::try_from(host.to_owned()).map_err(invalid)?;
            let stream = TlsConnector::from(config).connect(name, connecting.await?).await;
            let stream = stream
                .map_err(|error| io::Error::new(error.kind(), format!("TLS handshake with {address}: {error}")))?;
            Ok(Box::new(stream) as BoxedIo)
        })
    })
}

async fn current(tls: &TlsConfig, working: &Working) -> io::Result<Arc<ClientConfig>> {
    let made = match tls.read().await {
        Err(error) => Err(error),
        Ok(contents) => {
            if let Some((known, config)) = &*working.lock()
                && *known == contents
            {
                return Ok(config.clone());
            }
            contents.config().map(|config| (contents, config))
        }
    };
    let mut working = working.lock();
    match (made, &*working) {
        (Ok((contents, config)), _) => {
            *working = Some((contents, config.clone()));
            Ok(config)
        }
        (Err(error), Some((_, config))) => {
            tracing::warn!(%error, "new certificates cannot be used; the old ones stay");
            Ok(config.clone())
        }
        (Err(error), None) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> Connector {
        Arc::new(|_| Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }))
    }

    async fn error(tls: TlsConfig) -> String {
        match tls_connector(nowhere(), tls)("host:1".into()).await {
            Ok(_) => panic!("it connected"),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named_before_anything_is_opened() {
        let missing = error(TlsConfig::new(PathBuf::from("no-such-file"))).await;
        assert!(missing.starts_with("CA: no-such-file: "), "{missing}");
        let empty = error(TlsConfig::new(Pem::Text(Vec::new()))).await;
        assert_eq!(empty, "CA: must hold a certificate in PEM form");
    }

    #[test]
    fn hosts_are_taken_out_of_addresses() {
        assert_eq!((host_of("a.b:7400"), host_of("[::1]:7400"), host_of("10.0.0.1:1")), ("a.b", "::1", "10.0.0.1"));
    }
}
