//! Finds which source file of a crate imports which, from `use` declarations and `crate::` paths.
//!
//! A name is followed through the re-exports of a folder's `mod.rs` to the file that defines it, so importing
//! `super::Thing` counts as importing the file of `Thing`, not its folder. A call of a `mod.rs` into its own children
//! (`child::run()`) is not an import: the `mod.rs` is the interface of its folder. Code for tests is left out:
//! `tests.rs`, folders called `tests`, and the text after `#[cfg(test)]` at the left margin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files of a crate, and what each imports.
#[derive(Debug)]
pub struct Imports {
    /// Path below the crate's `src`, and the files there that it imports.
    pub files: BTreeMap<String, BTreeSet<String>>,
}

/// A module path and the file that it is.
struct Module {
    file: String,
    /// Names that it re-exports, and the module path they come from.
    exports: BTreeMap<String, Vec<String>>,
    /// Paths that it imports, absolute within the crate.
    imports: BTreeSet<Vec<String>>,
}

impl Imports {
    /// Reads the sources below `src`.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn of(src: &Path) -> Self {
        let mut modules = BTreeMap::new();
        for path in sources(src) {
            let file = path.strip_prefix(src).expect("below src").to_string_lossy().into_owned();
            let text = without_tests(&fs::read_to_string(&path).expect("a source file is UTF-8"));
            let module = module_path(&file);
            let (mut imports, mut exports) = (BTreeSet::new(), BTreeMap::new());
            for (public, tree) in use_declarations(&text) {
                for (leaf, name) in leaves(&tree, &[]) {
                    let Some(target) = absolute(&leaf, &module) else { continue };
                    if public {
                        exports.insert(name, target);
                    } else {
                        imports.insert(target);
                    }
                }
            }
            imports.extend(inline_paths(&text, &module));
            modules.insert(module, Module { file, exports, imports });
        }
        let resolve = |target: &[String]| resolve(&modules, target, 0);
        let files = modules.values().map(|module| {
            let imported =
                module.imports.iter().filter_map(|target| resolve(target)).filter(|file| *file != module.file);
            (module.file.clone(), imported.collect())
        });
        Self { files: files.collect() }
    }

    /// The groups of files that import one another in a circle.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        let mut reach: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for file in self.files.keys() {
            let (mut seen, mut open) = (BTreeSet::new(), vec![file.as_str()]);
            while let Some(at) = open.pop() {
                for next in self.files.get(at).into_iter().flatten() {
                    if seen.insert(next.as_str()) {
                        open.push(next);
                    }
                }
            }
            reach.insert(file, seen);
        }
        let mut circles: BTreeSet<Vec<&str>> = BTreeSet::new();
        for (file, seen) in &reach {
            if seen.contains(file) {
                circles.insert(seen.iter().filter(|other| reach[*other].contains(file)).copied().collect());
            }
        }
        circles.into_iter().collect()
    }
}

/// The file of a path: of the longest part of it that is a module, or of what that module re-exports.
fn resolve(modules: &BTreeMap<Vec<String>, Module>, target: &[String], depth: usize) -> Option<String> {
    let length = (0..=target.len()).rev().find(|length| modules.contains_key(&target[..*length]))?;
    let module = &modules[&target[..length]];
    match target.get(length).and_then(|name| module.exports.get(name)) {
        Some(source) if depth < 8 => resolve(modules, source, depth + 1).or_else(|| Some(module.file.clone())),
        _ if length == 0 => None,
        _ => Some(module.file.clone()),
    }
}

/// Returns the source files below a folder, without those of tests: `tests.rs`, and folders called `tests`.
///
/// # Panics
/// When the folder cannot be listed.
pub fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the sources can be listed") {
        let path = entry.expect("an entry can be read").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
    found
}

fn module_path(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        path.pop();
    }
    path
}

/// Returns the text without comments and without code that is compiled for tests only.
pub fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            // `mod tests;` is one line; `mod tests {` reaches to the brace at the margin.
            if lines.next().is_some_and(|next| next.ends_with('{')) {
                lines.by_ref().find(|line| *line == "}");
            }
            continue;
        }
        kept.push_str(line.split("//").next().unwrap_or_default());
        kept.push('\n');
    }
    kept
}

/// Every `use` declaration: whether it re-exports, and its tree.
fn use_declarations(text: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim_start();
        let public = line.starts_with("pub");
        let Some((before, tree)) = line.split_once("use ") else { continue };
        if !(before.is_empty() || public && !before.contains('"')) {
            continue;
        }
        let mut tree = tree.to_owned();
        while !tree.contains(';') {
            let Some(next) = lines.next() else { break };
            tree.push_str(next.trim());
        }
        found.push((
            public,
            tree.split(';').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "),
        ));
    }
    found
}

/// The paths of a `use` tree, each with the name that it is known by.
fn leaves(tree: &str, prefix: &[String]) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((path, inner)) = tree.split_once('{') {
        let mut prefix = prefix.to_vec();
        prefix.extend(path.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
        let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
        return at_commas(inner).iter().flat_map(|tree| leaves(tree, &prefix)).collect();
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias)));
    let mut leaf = prefix.to_vec();
    leaf.extend(
        path.split("::")
            .map(str::trim)
            .filter(|part| !part.is_empty() && *part != "self" || prefix.is_empty())
            .map(str::to_owned),
    );
    if leaf.last().is_some_and(|last| last == "*") {
        leaf.pop();
    }
    let name = alias.map(str::to_owned).or_else(|| leaf.last().cloned()).unwrap_or_default();
    vec![(leaf, name)]
}

fn at_commas(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

/// A path within the crate; `None` for other crates'.
fn absolute(leaf: &[String], module: &[String]) -> Option<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = leaf;
    match leaf.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &leaf[1..];
        }
        "self" => rest = &leaf[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        // A child of this module, as in `pub use child::Name`.
        first if first.chars().next().is_some_and(char::is_lowercase) => {}
        _ => return None,
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// Paths outside of declarations that begin with `crate::` or `super::`.
fn inline_paths(text: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.contains("use ") && line.contains("::")) {
        for word in line.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | ':'))) {
            let path: Vec<String> = word.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            // The word alone is a visibility, as in `pub(super)`.
            if path.len() > 1 && matches!(path[0].as_str(), "crate" | "super") {
                found.extend(absolute(&path, module));
            }
        }
    }
    found
}
