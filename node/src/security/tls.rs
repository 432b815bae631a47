//! TLS of the data port: the current certificates, their reload, and handshakes.
//!
//! Invariants:
//! - A handshake uses the material that is current when it begins; open connections are not affected by a reload.
//! - Files that cannot be used change nothing: the previous certificates stay in effect, an error is logged once for
//!   each change of the files, and `chronicle_tls_reload_failures_total` counts it.
//!
//! Files are compared by their contents: a Kubernetes Secret changes behind a symlink, and modification times are not
//! reliable.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fmt, io};

use chronicle_client::{BoxedIo, Connector};
use parking_lot::{Mutex, RwLock};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Acceptor;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::handshake::{HandshakeError, HandshakeOutcome};
use super::material::{Material, MaterialError, PEER_PROTOCOL, PemFiles};
use crate::config::{SecurityConfig, TlsConfig};
use crate::host::net::Socket;
use crate::identity::{
    CertificateFacts, IdentityError, NodeClaim, NodeRules, PeerCertificate, Principal, PrincipalRules, host_of,
};
use crate::telemetry::Samples;

/// Known names of nodes by their addresses.
pub type NodeNames = Arc<RwLock<HashMap<String, String>>>;

/// The other side of an encrypted connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// A client; `None`: it sent no certificate.
    Client(Option<Principal>),
    /// A peer with a certificate of the CA. Each call checks which node the certificate is valid for.
    Peer(Arc<PeerCertificate>),
}

/// The TLS state of the node.
pub struct Tls {
    config: TlsConfig,
    rules: RwLock<PrincipalRules>,
    nodes: NodeRules,
    loaded: RwLock<Arc<LoadedCertificates>>,
    /// The last reload failure: the contents (`None`: unreadable) and the error. `None`: the files are usable.
    broken: Mutex<Option<(Option<PemFiles>, String)>>,
    failures: AtomicU64,
    reloads: AtomicU64,
    handshakes: [AtomicU64; HandshakeOutcome::ALL.len()],
}

struct LoadedCertificates {
    contents: PemFiles,
    material: Material,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("served", &self.served()).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files of a checked configuration. Blocks.
    ///
    /// # Errors
    /// A file cannot be read or has no valid content.
    pub fn open(config: &SecurityConfig) -> Result<Arc<Self>, MaterialError> {
        let contents = PemFiles::read(&config.tls)?;
        let material = Material::build(&contents, &config.tls)?;
        // The configuration's validation has checked both.
        let rules = PrincipalRules::new(&config.principal_rules).unwrap_or_default();
        let nodes = NodeRules::new(&config.peers.allowed_names, &config.tls.peer_server_name).unwrap_or_default();
        let tls = Self {
            config: config.tls.clone(),
            rules: RwLock::new(rules),
            nodes,
            loaded: RwLock::new(Arc::new(LoadedCertificates { contents, material })),
            broken: Mutex::new(None),
            failures: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            handshakes: Default::default(),
        };
        tls.log("TLS is on");
        Ok(Arc::new(tls))
    }

    fn loaded(&self) -> Arc<LoadedCertificates> {
        self.loaded.read().clone()
    }

    fn log(&self, what: &str) {
        let loaded = self.loaded();
        let Material { served, authorities, .. } = &loaded.material;
        let authorities: Vec<&str> = authorities.iter().map(|ca| ca.serial.as_str()).collect();
        tracing::info!(serial = served.serial, not_after_s = served.not_after_s, ?authorities, "{what}");
    }

    /// Returns the certificate that this node sends now.
    pub fn served(&self) -> CertificateFacts {
        self.loaded().material.served.clone()
    }

    /// Sets the rules, already validated, that map the certificates of new connections to principals.
    pub(crate) fn set_principal_rules(&self, rules: &[String]) {
        *self.rules.write() = PrincipalRules::new(rules).unwrap_or_default();
    }

    /// Returns how often changed files could not be used.
    pub fn reload_failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Reads the files and applies changes when all files are valid. Blocks.
    pub fn reload(&self) {
        let contents = match PemFiles::read(&self.config) {
            Ok(contents) => contents,
            Err(error) => return self.record_failure(None, error.to_string()),
        };
        if contents == self.loaded().contents {
            // Also when an invalid change was reverted.
            *self.broken.lock() = None;
            return;
        }
        // Retried even when the contents are the same as at the last failure: a certificate that is not valid yet
        // becomes valid later.
        match Material::build(&contents, &self.config) {
            Ok(material) => {
                *self.loaded.write() = Arc::new(LoadedCertificates { contents, material });
                *self.broken.lock() = None;
                self.reloads.fetch_add(1, Ordering::Relaxed);
                self.log("new certificates applied");
            }
            Err(error) => self.record_failure(Some(contents), error.to_string()),
        }
    }

    fn record_failure(&self, contents: Option<PemFiles>, error: String) {
        let mut broken = self.broken.lock();
        // Without contents, the error text distinguishes one failure from another.
        let known = broken.as_ref().is_some_and(|(of, said)| *of == contents && (of.is_some() || *said == error));
        if !known {
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                error,
                serial = self.served().serial,
                "new certificates cannot be used, previous ones stay in effect"
            );
            *broken = Some((contents, error));
        }
    }

    /// Calls [`Tls::reload`] every `security.tls.reload-ms` until `stop`.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut tick = interval(Duration::from_millis(self.config.reload_ms));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let tls = self.clone();
            // A reload in progress runs to its end even when this task ends.
            if let Err(error) = crate::host::blocking(move || tls.reload()).await {
                tracing::error!(%error, "reload of certificates panicked");
            }
        }
    }

    /// Checks that a peer's certificate is valid for the claimed node.
    ///
    /// # Errors
    /// A human-readable reason.
    pub fn judge(&self, certificate: &PeerCertificate, claim: NodeClaim<'_>) -> Result<(), String> {
        self.nodes.judge(certificate, claim)
    }

    /// Performs the server's side of a handshake and counts its outcome. The caller bounds its time.
    ///
    /// # Errors
    /// Why the handshake failed.
    pub async fn accept(&self, socket: Socket) -> Result<(Socket, Remote), HandshakeError> {
        let result = self.handshake(socket).await;
        let outcome = result.as_ref().map_or_else(|error| error.outcome, |_| HandshakeOutcome::Ok);
        self.count(outcome);
        result
    }

    /// Counts a handshake.
    pub(crate) fn count(&self, outcome: HandshakeOutcome) {
        self.handshakes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    async fn handshake(&self, socket: Socket) -> Result<(Socket, Remote), HandshakeError> {
        let started = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let loaded = self.loaded();
        let is_peer =
            started.client_hello().alpn().is_some_and(|mut offered| offered.any(|name| name == PEER_PROTOCOL));
        let config = if is_peer { &loaded.material.peers } else { &loaded.material.clients };
        let stream = started.into_stream(config.clone()).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let remote = self.remote(is_peer, certificate)?;
        Ok((Socket::Tls(Box::new(stream.into())), remote))
    }

    fn remote(&self, is_peer: bool, certificate: Option<CertificateDer<'static>>) -> Result<Remote, HandshakeError> {
        let nameless = |error: IdentityError| HandshakeError::new(HandshakeOutcome::Nameless, error.to_string());
        match (is_peer, certificate) {
            (true, Some(certificate)) => {
                let certificate = PeerCertificate::new(certificate.into_owned()).map_err(nameless)?;
                Ok(Remote::Peer(Arc::new(certificate)))
            }
            (true, None) => Err(HandshakeError::new(
                HandshakeOutcome::NoCertificate,
                "unauthenticated: a node must send a certificate".into(),
            )),
            (false, Some(certificate)) => {
                self.rules.read().principal(&certificate).map(Some).map(Remote::Client).map_err(nameless)
            }
            (false, None) => Ok(Remote::Client(None)),
        }
    }

    /// Returns a connector that adds TLS to connections of `plain`. It connects only to nodes; when `names` contains
    /// the address, only to the node with that name.
    pub fn connector(self: &Arc<Self>, plain: Connector, names: NodeNames) -> Connector {
        let tls = self.clone();
        Arc::new(move |address| {
            let (tls, names, connecting) = (tls.clone(), names.clone(), plain(address.clone()));
            Box::pin(async move {
                let io = connecting.await?;
                tls.connect(io, &address, &names).await
            })
        })
    }

    async fn connect(&self, io: BoxedIo, address: &str, names: &NodeNames) -> io::Result<BoxedIo> {
        let refused = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, format!("{address}: {why}"));
        let host = match self.config.peer_server_name.as_str() {
            "" => host_of(address),
            name => name,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| refused(error.to_string()))?;
        let connector = TlsConnector::from(self.loaded().material.connect.clone());
        let stream = connector.connect(name, io).await?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(PEER_PROTOCOL) {
            return Err(refused("no node listens at this address (ALPN protocol missing)".into()));
        }
        let certificate = session.peer_certificates().and_then(<[_]>::first).cloned();
        let certificate = certificate.ok_or_else(|| refused("the node sent no certificate".into()))?;
        let certificate = PeerCertificate::new(certificate.into_owned()).map_err(|error| refused(error.to_string()))?;
        let name = names.read().get(address).cloned().unwrap_or_default();
        self.judge(&certificate, NodeClaim { name: &name, address }).map_err(refused)?;
        Ok(Box::new(stream))
    }

    /// Adds the TLS metrics to a scrape.
    pub(crate) fn collect(&self, samples: &mut Samples) {
        let loaded = self.loaded();
        let Material { served, authorities, .. } = &loaded.material;
        let all = || std::iter::once(("node", served)).chain(authorities.iter().map(|ca| ("ca", ca)));
        let help = "Expiry of the served certificate, or of the CA that expires first, in seconds since the Unix epoch";
        for kind in ["node", "ca"] {
            let ends = all().filter(|(of, _)| *of == kind).map(|(_, facts)| facts.not_after_s).min();
            let ends = ends.unwrap_or_default() as f64;
            samples.gauge_of("tls_certificate_not_after_seconds", help, &[("kind", kind.into())], ends);
        }
        for (kind, facts) in all() {
            let labels = [("kind", kind.into()), ("serial", facts.serial.clone())];
            samples.gauge_of("tls_certificate_info", "1 for each certificate in use, by serial number", &labels, 1.0);
        }
        samples.counter(
            "tls_reloads",
            "Changed certificate files that were applied",
            self.reloads.load(Ordering::Relaxed),
        );
        samples.counter(
            "tls_reload_failures",
            "Changed certificate files that could not be loaded",
            self.reload_failures(),
        );
        let broken = f64::from(u8::from(self.broken.lock().is_some()));
        samples.gauge(
            "tls_reload_broken",
            "1 while the certificate files cannot be loaded and the previous ones are in use",
            broken,
        );
        for outcome in HandshakeOutcome::ALL {
            let count = self.handshakes[outcome as usize].load(Ordering::Relaxed);
            let labels = [("outcome", outcome.as_str().into())];
            samples.counter_of("tls_handshakes", "Handshakes on the data port by outcome", &labels, count);
        }
    }
}
