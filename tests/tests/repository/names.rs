//! One name, one thing: no two files of a crate have one name, and no two types of the node.
//!
//! A reader finds code by the names of files and types. Where two of one name do the same for their folder, or are one
//! concept, the name is in a list below with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use chronicle_tests::imports::{sources, without_tests};
use chronicle_tests::repository;

use crate::layers::CRATES;

/// Names of files that a crate has more than once, each with what these files are.
const FILES: &[(&str, &str)] = &[
    ("mod.rs", "the interface of its folder"),
    ("error.rs", "the errors of its folder"),
    ("append.rs", "an append: what the broker does, and the HTTP request for it"),
    ("read.rs", "a read: what the broker does, and the HTTP request for it"),
    ("for_caller.rs", "who may call: the checks before the broker, and before the groups"),
    ("state_machine.rs", "applying entries: what every raft group does, and what a partition derives"),
    ("cli.rs", "the command line of a program: the operator, and the plugin of kubectl"),
    ("topic.rs", "ChronicleTopic: the resource, and its reconciler"),
    ("user.rs", "ChronicleUser: the resource, and its reconciler"),
];

/// Names that two types of the node have, each with the one concept that both are.
const TYPES: &[(&str, &str)] =
    &[("Durability", "when an append counts as done: of a log, and as the argument of a command")];

/// The crates that are linked into the node.
const NODE: &[&str] = &["node/log/src", "node/records/src", "node/src"];

/// What has each name.
type Uses = BTreeMap<String, Vec<String>>;

fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

/// Returns the name of the type that a line begins to define. An indented `type` belongs to an `impl` or a trait.
fn defined(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let code = match code.strip_prefix("pub(") {
        Some(rest) => rest.split_once(')')?.1,
        None => code.strip_prefix("pub ").unwrap_or(code),
    };
    let (keyword, rest) = code.trim_start().split_once(' ')?;
    if !matches!(keyword, "struct" | "enum" | "trait" | "union") && (keyword != "type" || line.starts_with(' ')) {
        return None;
    }
    let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    name.starts_with(char::is_uppercase).then_some(name)
}

/// Lists the names with more than one use that are not allowed.
fn repeated(uses: &Uses, allowed: &[(&str, &str)]) -> Vec<String> {
    let allows = |name: &str| allowed.iter().any(|(allowed, _)| *allowed == name);
    uses.iter()
        .filter(|(name, places)| places.len() > 1 && !allows(name))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect()
}

/// Lists the allowed names that are not used twice.
fn stale<'a>(uses: &[Uses], allowed: &[(&'a str, &str)]) -> Vec<&'a str> {
    let repeats = |name: &str| uses.iter().any(|uses| uses.get(name).is_some_and(|places| places.len() > 1));
    allowed.iter().map(|(name, _)| *name).filter(|name| !repeats(name)).collect()
}

#[test]
fn no_two_files_of_a_crate_have_one_name() {
    let of = |folder: &&str| {
        let mut uses = Uses::new();
        for path in sources(&repository().join(folder)) {
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            uses.entry(name).or_default().push(shown(&path));
        }
        uses
    };
    let uses: Vec<Uses> = CRATES.iter().map(of).collect();
    let wrong: Vec<String> = uses.iter().flat_map(|uses| repeated(uses, FILES)).collect();
    assert!(wrong.is_empty(), "files of one name: say in each name what the file holds:\n{}", wrong.join("\n"));
    let stale = stale(&uses, FILES);
    assert!(stale.is_empty(), "no crate has these files twice: {stale:?}");
}

#[test]
fn no_two_types_of_the_node_have_one_name() {
    let mut uses = Uses::new();
    for path in NODE.iter().flat_map(|folder| sources(&repository().join(folder))) {
        let text = without_tests(&fs::read_to_string(&path).expect("a source file is UTF-8"));
        // One file may define a type twice, once for each platform.
        for name in text.lines().filter_map(defined).collect::<BTreeSet<_>>() {
            uses.entry(name.to_owned()).or_default().push(shown(&path));
        }
    }
    assert!(uses.len() > 300, "only {} types were found", uses.len());
    let wrong = repeated(&uses, TYPES);
    assert!(wrong.is_empty(), "types of one name: name each by the glossary's term:\n{}", wrong.join("\n"));
    let stale = stale(&[uses], TYPES);
    assert!(stale.is_empty(), "the node does not define these types twice: {stale:?}");
}

#[test]
fn a_definition_is_recognised_by_its_first_words() {
    assert_eq!(defined("pub struct Topic {"), Some("Topic"));
    assert_eq!(defined("    pub(in crate::cli) enum Format<T> {"), Some("Format"));
    assert_eq!(defined("trait Clock: Send {"), Some("Clock"));
    assert_eq!(defined("pub type Done = Box<dyn FnOnce()>;"), Some("Done"));
    assert_eq!(defined("    type Error = String;"), None, "of an impl");
    assert_eq!(defined("pub fn struct_of(enum_name: &str) {"), None);
    assert_eq!(defined("let struct_name = 1;"), None);
}
