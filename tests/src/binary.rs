//! Finds the `chronicle` program to test: next to the running test; builds it when it is missing or older than its
//! sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::repository;

/// Path of the `chronicle` program of the same profile as the caller.
///
/// `CHRONICLE_TEST_BINARY` names another program. `cargo test --workspace` always builds the program first; a run of
/// this crate alone may have to build it here.
///
/// # Errors
/// It cannot be built.
pub fn chronicle() -> Result<&'static Path> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = FOUND.get() {
        return Ok(path);
    }
    let path = match std::env::var_os("CHRONICLE_TEST_BINARY") {
        Some(path) => PathBuf::from(path),
        None => beside_this_program()?,
    };
    Ok(FOUND.get_or_init(|| path))
}

fn beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("path of the running program")?;
    let mut dir = this.parent().context("the running program has no folder")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("deps lies in no folder")?;
    }
    let profile = dir.file_name().context("the build folder has no name")?.to_string_lossy().into_owned();
    let binary = dir.join("chronicle");
    let built = fs::metadata(&binary).and_then(|m| m.modified()).ok();
    if built.is_none_or(|built| newest_source() > built) {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Selects the whole workspace, so that the features, and therefore most build results, are those of `make
        // test`.
        build.args(["build", "--workspace", "--locked", "--bin", "chronicle"]).current_dir(repository());
        build.env("CARGO_TARGET_DIR", dir.parent().context("the build folder lies in no folder")?);
        if profile == "release" {
            build.arg("--release");
        }
        let output = build.output().context("starting cargo build")?;
        if !output.status.success() {
            bail!("cargo build --bin chronicle:\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(binary)
}

/// When a source of the program was last changed.
fn newest_source() -> SystemTime {
    fn newest(path: &Path) -> SystemTime {
        let Ok(metadata) = fs::metadata(path) else { return SystemTime::UNIX_EPOCH };
        if !metadata.is_dir() {
            return metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        }
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| newest(&entry.path())).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }
    let root = repository();
    [
        "Cargo.toml",
        "client/Cargo.toml",
        "client/src",
        "node/Cargo.toml",
        "node/log/Cargo.toml",
        "node/log/src",
        "node/records/Cargo.toml",
        "node/records/src",
        "node/src",
        "proto",
    ]
    .iter()
    .map(|part| newest(&root.join(part)))
    .max()
    .unwrap_or(SystemTime::UNIX_EPOCH)
}
