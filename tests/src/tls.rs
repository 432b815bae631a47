//! Certificates for tests: a CA made by the program itself, folders that change as a Kubernetes Secret does, and the
//! list of addresses that use TLS.
//!
//! [`crate::api`] and [`client_config`] look up the address that they connect to, so a test does not have to repeat
//! whether its cluster uses TLS.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronicle_client::{ClientConfig, TlsConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, StreamOwned};
use tempfile::TempDir;

use crate::node::{output, program};

/// Principal of the client that the tests use: [`Secured::client`].
pub const ADMIN: &str = "admin";

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

/// A certificate authority in its own folder, which is deleted with this value.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// `chronicle cert` fails.
    pub fn new() -> Result<Self> {
        let authority = Self { folder: tempfile::tempdir()? };
        authority.cert(&["ca"])?;
        Ok(authority)
    }

    fn cert(&self, arguments: &[&str]) -> Result<()> {
        let mut command = program()?;
        command.arg("cert").args(arguments).arg("--out").arg(self.folder.path());
        let out = output(command)?;
        ensure!(out.status.success(), "chronicle cert {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// The certificate of the authority.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// A pair that was created before.
    pub fn pair(&self, name: &str) -> Pair {
        let file = |end: &str| self.folder.path().join(format!("{name}.{end}"));
        Pair { certificate: file("crt"), key: file("key") }
    }

    /// Creates or recreates the certificate of a node. `more` are options of `chronicle cert`.
    ///
    /// # Errors
    /// `chronicle cert` fails.
    pub fn node(&self, name: &str, host: &str, more: &[&str]) -> Result<Pair> {
        self.cert(&[&["node", name, "--host", host, "--force"], more].concat())?;
        Ok(self.pair(name))
    }

    /// Creates or recreates the certificate of a client.
    ///
    /// # Errors
    /// `chronicle cert` fails.
    pub fn client(&self, name: &str, more: &[&str]) -> Result<Pair> {
        self.cert(&[&["client", name, "--force"], more].concat())?;
        Ok(self.pair(name))
    }

    /// TLS configuration of a client of nodes with this authority, with or without a client certificate.
    pub fn trusted(&self, pair: Option<&Pair>) -> TlsConfig {
        let tls = TlsConfig::new(self.ca());
        match pair {
            Some(pair) => tls.identity(pair.certificate.clone(), pair.key.clone()),
            None => tls,
        }
    }
}

/// A folder with `tls.crt`, `tls.key` and `ca.crt` as the kubelet mounts a Secret: symlinks through `..data`, which a change
/// replaces in one step.
#[derive(Debug)]
pub struct Mounted {
    folder: TempDir,
    version: Mutex<u32>,
}

impl Mounted {
    /// A folder with this content; the bundle holds all of `authorities`.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn new(pair: &Pair, authorities: &[&Path]) -> Result<Self> {
        let mounted = Self { folder: tempfile::tempdir()?, version: Mutex::new(0) };
        mounted.swap(pair, authorities)?;
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), mounted.file(name))?;
        }
        Ok(mounted)
    }

    /// One of the files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces all three files at once.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn swap(&self, pair: &Pair, authorities: &[&Path]) -> Result<()> {
        let bundle = authorities.iter().map(|path| std::fs::read(path).context("reading a CA"));
        let bundle = bundle.collect::<Result<Vec<_>>>()?.concat();
        self.put(&std::fs::read(&pair.certificate)?, &std::fs::read(&pair.key)?, &bundle)
    }

    /// Replaces all three files at once with these bytes.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn put(&self, certificate: &[u8], key: &[u8], bundle: &[u8]) -> Result<()> {
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        *version += 1;
        let name = format!("..version-{version}");
        let folder = self.folder.path().join(&name);
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("tls.crt"), certificate)?;
        std::fs::write(folder.join("tls.key"), key)?;
        std::fs::write(folder.join("ca.crt"), bundle)?;
        let next = self.folder.path().join("..data_next");
        std::os::unix::fs::symlink(&name, &next)?;
        Ok(std::fs::rename(next, self.folder.path().join("..data"))?)
    }

    /// TLS configuration of a client that has this folder mounted.
    pub fn client(&self) -> TlsConfig {
        TlsConfig::new(self.file("ca.crt")).identity(self.file("tls.crt"), self.file("tls.key"))
    }
}

/// What secures one cluster: its authority, a folder for the client of the test, and one per node.
#[derive(Debug)]
pub struct Secured {
    /// Signs all certificates at first.
    pub authority: Authority,
    /// The certificate of the test's client, and the CAs that it trusts.
    pub client: Mounted,
    nodes: Mutex<HashMap<String, Arc<Mounted>>>,
}

impl Secured {
    /// Creates an authority, and a client certificate signed by it.
    ///
    /// # Errors
    /// `chronicle cert` fails.
    pub fn new() -> Result<Arc<Self>> {
        let authority = Authority::new()?;
        let client = Mounted::new(&authority.client(ADMIN, &[])?, &[&authority.ca()])?;
        Ok(Arc::new(Self { authority, client, nodes: Mutex::default() }))
    }

    /// The folder of a node, created at the first call.
    ///
    /// # Errors
    /// `chronicle cert` fails.
    pub fn node(&self, name: &str, host: &str) -> Result<Arc<Mounted>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounted) = nodes.get(name) {
            return Ok(mounted.clone());
        }
        let pair = self.authority.node(name, host, &[])?;
        let mounted = Arc::new(Mounted::new(&pair, &[&self.authority.ca()])?);
        nodes.insert(name.to_owned(), mounted.clone());
        Ok(mounted)
    }
}

static SECURED: LazyLock<Mutex<HashMap<SocketAddr, Arc<Secured>>>> = LazyLock::new(Mutex::default);

/// Marks the address as using TLS.
pub fn register(address: SocketAddr, secured: &Arc<Secured>) {
    SECURED.lock().unwrap_or_else(PoisonError::into_inner).insert(address, secured.clone());
}

/// Marks the address as plaintext again.
pub fn forget(address: SocketAddr) {
    SECURED.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
}

/// The certificates for an address; `None`: plaintext.
pub fn of(address: SocketAddr) -> Option<Arc<Secured>> {
    SECURED.lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
}

/// The client configuration for `HOST:PORT,...`, with TLS when the first address uses it.
pub fn client_config(servers: &str) -> ClientConfig {
    let first = servers.split(',').next().and_then(|server| server.trim().parse().ok());
    let config = ClientConfig::new(servers);
    match first.and_then(of) {
        Some(secured) => config.tls(secured.client.client()),
        None => config,
    }
}

/// Configures a `chronicle` command for TLS when the address uses it.
pub fn encrypt(command: &mut Command, address: SocketAddr) {
    let Some(secured) = of(address) else { return };
    for (variable, file) in [("CHRONICLE_CA", "ca.crt"), ("CHRONICLE_CERT", "tls.crt"), ("CHRONICLE_KEY", "tls.key")] {
        command.env(variable, secured.client.file(file));
    }
}

/// An HTTP client for an address.
///
/// # Errors
/// Its certificates cannot be used.
pub fn http(address: SocketAddr) -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder();
    let Some(secured) = of(address) else { return Ok(builder.build()?) };
    let identity = [std::fs::read(secured.client.file("tls.crt"))?, std::fs::read(secured.client.file("tls.key"))?];
    let bundle = reqwest::Certificate::from_pem_bundle(&std::fs::read(secured.client.file("ca.crt"))?)?;
    let builder = bundle.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
    Ok(builder.identity(reqwest::Identity::from_pem(&identity.concat())?).build()?)
}

/// A TLS connection that offers one protocol (ALPN) and presents a certificate. Reads wait for two seconds.
///
/// # Errors
/// A file cannot be read, or the port is closed. The first read or write returns errors of the handshake.
pub fn raw(
    address: SocketAddr,
    authority: &Authority,
    pair: &Pair,
    protocol: &[u8],
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.ca())?)?;
    let chain = CertificateDer::pem_file_iter(&pair.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&pair.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let connection = ClientConnection::new(Arc::new(config), ServerName::from(address.ip()))?;
    Ok(StreamOwned::new(connection, stream))
}

/// `http://HOST:PORT` or `https://HOST:PORT`.
pub fn url(address: SocketAddr) -> String {
    let scheme = if of(address).is_some() { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// Whether clusters use TLS when the test does not specify it (`CHRONICLE_TEST_TLS=1`).
pub fn by_default() -> bool {
    std::env::var("CHRONICLE_TEST_TLS").is_ok_and(|value| value == "1")
}
