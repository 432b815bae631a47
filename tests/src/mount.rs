//! Makes small dedicated volumes, to be filled up or mounted read-only.
//!
//! Mounting needs root. Without root a test runs itself again inside a user and mount namespace ([`with_mounts`]), so
//! it is never skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

const INSIDE: &str = "CHRONICLE_TEST_INSIDE_NAMESPACE";

/// Runs `body` with permission to mount: directly as root, otherwise by running this one test (its full name) again
/// inside a namespace where the user is root.
///
/// # Errors
/// `body` fails, or no namespace can be made.
pub fn with_mounts(test: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    if rustix::process::geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .context("starting unshare; this test has to mount a volume: run it as root or allow user namespaces")?;
    ensure!(status.success(), "{test} failed inside its namespace: {status}");
    Ok(())
}

/// A mounted tmpfs, unmounted on drop.
#[derive(Debug)]
pub struct Volume {
    dir: TempDir,
}

impl Volume {
    /// Mounts an empty volume of `bytes` bytes.
    ///
    /// # Errors
    /// The mount fails.
    pub fn new(bytes: u64) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "chronicle-test"], dir.path())?;
        Ok(Self { dir })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes it read-only or writable again. Fails while a file on it is open for writing.
    ///
    /// # Errors
    /// The mount fails.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        mount(&["-o", if read_only { "remount,ro" } else { "remount,rw" }], self.path())
    }

    /// Fills it to the last byte with a file that belongs to no node.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn fill(&self) -> Result<PathBuf> {
        use std::io::Write;
        let path = self.path().join("ballast");
        let mut file = std::fs::File::create(&path)?;
        for size in [1 << 20, 4096] {
            let piece = vec![7; size];
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("filling the volume"),
                }
            }
        }
        Ok(path)
    }

    /// Fills `bytes` of it with a file that belongs to no node.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn ballast(&self, bytes: usize) -> Result<PathBuf> {
        let path = self.path().join("ballast");
        std::fs::write(&path, vec![7; bytes])?;
        Ok(path)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazy, because a killed process may not have released the volume yet.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn mount(arguments: &[&str], target: &Path) -> Result<()> {
    let output = Command::new("mount").args(arguments).arg(target).output().context("starting mount")?;
    ensure!(output.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
