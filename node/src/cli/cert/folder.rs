//! A folder of certificates: `NAME.crt`, and `NAME.key` that only its owner reads.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};

use super::issue::{AUTHORITY, Authority, CertificateAndKey};

/// A folder of certificates and keys.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Folder {
    path: PathBuf,
    force: bool,
}

impl Folder {
    /// Returns the folder at `path`. With `force`, existing files are replaced.
    pub(in crate::cli) fn new(path: &Path, force: bool) -> Self {
        Self { path: path.to_owned(), force }
    }

    /// Path of the CA's certificate.
    pub(in crate::cli) fn ca(&self) -> PathBuf {
        self.certificate(AUTHORITY)
    }

    /// Path of a certificate.
    pub(in crate::cli) fn certificate(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.crt"))
    }

    /// Path of its private key.
    pub(in crate::cli) fn key(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.key"))
    }

    /// Whether a certificate and its key exist.
    pub(in crate::cli) fn has(&self, name: &str) -> bool {
        self.certificate(name).exists() && self.key(name).exists()
    }

    /// Reads the CA in this folder.
    pub(in crate::cli) fn authority(&self) -> anyhow::Result<Authority> {
        let read = |path: PathBuf| {
            let hint = || format!("{}: make a CA with `chronicle cert ca` first", path.display());
            std::fs::read_to_string(&path).with_context(hint)
        };
        Authority::read(&CertificateAndKey { certificate: read(self.ca())?, key: read(self.key(AUTHORITY))? })
    }

    /// Returns the CA in this folder; makes it first if there is none.
    pub(in crate::cli) fn ensure_authority(&self, name: &str, validity: super::Validity) -> anyhow::Result<Authority> {
        if !self.has(AUTHORITY) {
            self.write(AUTHORITY, &super::issue::authority(name, validity)?)?;
        }
        self.authority()
    }

    /// Writes a certificate and its key, and prints their paths on standard error.
    pub(in crate::cli) fn write(&self, name: &str, made: &CertificateAndKey) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.path).with_context(|| format!("creating {}", self.path.display()))?;
        let (certificate, key) = (self.certificate(name), self.key(name));
        // Both are checked before either is written: a certificate without its key is useless.
        for path in [&certificate, &key] {
            ensure!(self.force || !path.exists(), "{}: exists already; --force replaces it", path.display());
        }
        self.write_file(&key, &made.key, 0o600)?;
        self.write_file(&certificate, &made.certificate, 0o644)?;
        eprintln!("wrote {} and {}", certificate.display(), key.display());
        Ok(())
    }

    /// Writes atomically: another process that reads the file sees all of it or none.
    fn write_file(&self, path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
        let written = || -> io::Result<()> {
            let draft = path.with_extension(format!("{}.new", path.extension().unwrap_or_default().display()));
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
            // A draft of an earlier run may have other permissions.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&draft, path)
        };
        written().map_err(|error| anyhow!("writing {}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Subject, Validity};
    use super::*;

    #[test]
    fn keys_are_their_owners_and_nothing_is_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(&dir.path().join("certs"), false);
        assert!(folder.authority().is_err());
        let authority = folder.ensure_authority("test", Validity::new(None, 1)).unwrap();
        let made = authority.issue(&Subject::Client { name: "ann" }, Validity::new(None, 1)).unwrap();
        folder.write("ann", &made).unwrap();
        for name in ["ca", "ann"] {
            let mode = std::fs::metadata(folder.key(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let before = std::fs::read(folder.ca()).unwrap();
        folder.ensure_authority("test", Validity::new(None, 1)).unwrap();
        assert_eq!(std::fs::read(folder.ca()).unwrap(), before);
        let again = folder.write("ann", &made).unwrap_err().to_string();
        assert!(again.contains("--force"), "{again}");
        Folder::new(&dir.path().join("certs"), true).write("ann", &made).unwrap();
    }
}
