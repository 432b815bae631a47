//! Certificates of `chronicle dev --tls`: one CA per data directory, made once and kept.

use std::path::{Path, PathBuf};

use chronicle_node::config::{Config, TlsMode};

use crate::cli::TlsOptions;
use crate::cli::cert::{Folder, Subject, Validity};

/// Principal of the generated client certificate.
const ADMIN: &str = "admin";
/// Validity of the generated certificates, in days. Long, because a development folder may be used for years.
const DAYS: u32 = 3650;

/// The certificates of one data directory.
#[derive(Debug, Clone)]
pub(super) struct Certificates(Folder);

impl Certificates {
    /// Returns the certificates in the folder `tls` of a data directory.
    pub(super) fn of(data: &Path) -> Self {
        Self(Folder::new(&data.join("tls"), false))
    }

    /// Whether the CA was made before.
    pub(super) fn exist(&self) -> bool {
        self.0.ca().exists()
    }

    /// Turns TLS on for a node. Makes its certificate and the client certificate if they are missing.
    pub(super) fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        let validity = Validity::new(None, DAYS);
        let authority = self.0.ensure_authority("Chronicle development CA", validity)?;
        let name = config.node.name.clone();
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        if !self.0.has(&name) {
            self.0.write(&name, &authority.issue(&Subject::Node { name: &name, hosts: &hosts }, validity)?)?;
        }
        if !self.0.has(ADMIN) {
            self.0.write(ADMIN, &authority.issue(&Subject::Client { name: ADMIN }, validity)?)?;
        }
        let tls = &mut config.security.tls;
        tls.mode = TlsMode::Enabled;
        (tls.cert_file, tls.key_file, tls.ca_file) = (self.0.certificate(&name), self.0.key(&name), self.0.ca());
        Ok(config.validate()?)
    }

    /// Returns the TLS options of a client of the nodes.
    pub(super) fn client(&self) -> TlsOptions {
        let (cert, key) = (self.0.certificate(ADMIN), self.0.key(ADMIN));
        TlsOptions { ca: Some(self.0.ca()), cert: Some(cert), key: Some(key) }
    }

    /// Returns the same options as command-line arguments.
    pub(super) fn options(&self) -> String {
        let shown = |path: PathBuf| path.display().to_string();
        let (ca, cert, key) = (shown(self.0.ca()), shown(self.0.certificate(ADMIN)), shown(self.0.key(ADMIN)));
        format!(" --ca {ca} --cert {cert} --key {key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::of(dir.path());
        assert!(!certificates.exist());
        let mut config = Config::default();
        certificates.apply(&mut config).unwrap();
        assert!(certificates.exist());
        assert_eq!(config.security.tls.mode, TlsMode::Enabled);
        let before = std::fs::read(&config.security.tls.cert_file).unwrap();
        certificates.apply(&mut config).unwrap();
        assert_eq!(std::fs::read(&config.security.tls.cert_file).unwrap(), before);
        chronicle_node::security::Tls::open(&config.security).unwrap();
    }
}
