//! Finds real data: lines that the package manager of the machine wrote, and source files of crates that this build
//! uses.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::Value;

use crate::repository;

/// A record to append: key and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Identifies the line or file; unique in its list.
    pub key: Bytes,
    /// The bytes of the line (without its newline) or of the file.
    pub value: Bytes,
}

/// Every line of the first of these files that exists and has lines: the log of the Debian package manager, its status
/// file, this repository's lock file. Keys are `<path>:<line number>`.
///
/// # Errors
/// None of them can be read.
pub fn lines() -> Result<Vec<Item>> {
    let lock = repository().join("Cargo.lock");
    for path in [Path::new("/var/log/dpkg.log"), Path::new("/var/lib/dpkg/status"), &lock] {
        let Ok(content) = std::fs::read(path) else { continue };
        let content = Bytes::from(content);
        let mut items = Vec::new();
        for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
            items.push(Item {
                key: format!("{}:{}", path.display(), number + 1).into(),
                value: content.slice_ref(line),
            });
        }
        // The text after the last newline is not a line.
        if items.last().is_some_and(|item| item.value.is_empty()) {
            items.pop();
        }
        if !items.is_empty() {
            println!("{} lines of {}", items.len(), path.display());
            return Ok(items);
        }
    }
    anyhow::bail!("no text to read on this machine");
}

/// Every `.rs` file of the named dependencies, from where cargo keeps their sources. Keys are `<crate>/<path in it>`.
/// Files larger than `bytes_max` are left out and counted in the second value.
///
/// # Errors
/// A crate is not in the dependency graph, or its files cannot be read.
pub fn sources(crates: &[&str], bytes_max: usize) -> Result<(Vec<Item>, usize)> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--locked", "--format-version", "1"])
        .current_dir(repository())
        .output()
        .context("starting cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut items = Vec::new();
    let mut skipped = 0;
    for name in crates {
        let package = packages
            .iter()
            .find(|package| package["name"] == *name)
            .with_context(|| format!("{name} is no dependency"))?;
        let manifest = Path::new(package["manifest_path"].as_str().context("a package has a manifest")?);
        let root = manifest.parent().context("a manifest lies in a folder")?;
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let value = std::fs::read(&path)?;
                    if value.len() > bytes_max {
                        skipped += 1;
                        continue;
                    }
                    let key = format!("{name}/{}", path.strip_prefix(root)?.display());
                    items.push(Item { key: key.into(), value: value.into() });
                }
            }
        }
    }
    items.sort_by(|a, b| a.key.cmp(&b.key));
    println!("{} source files of {crates:?}, {skipped} skipped as larger than {bytes_max} bytes", items.len());
    ensure!(!items.is_empty(), "no source files found");
    Ok((items, skipped))
}
