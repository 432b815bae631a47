//! Imports run one way: no circle among the files of a crate, and in the node from the upper floor to the lower.

use std::collections::BTreeMap;

use chronicle_tests::imports::Imports;
use chronicle_tests::repository;

/// The folders of `node/src`, from the top floor down. A folder imports from floors below its own only; what stands on one floor
/// knows nothing of its neighbours there. docs/ARCHITECTURE.md says what each is for.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["runtime"],
    &["listeners"],
    &["groups"],
    &["broker"],
    &["controller", "partition"],
    &["cluster"],
    &["raft"],
    &["membership", "peers"],
    &["discovery", "metadata"],
    &["security"],
    &["telemetry"],
    &["config"],
    &["identity"],
    &["host", "model"],
];

/// Imports that run against the order, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Where each crate has its sources.
pub(crate) const CRATES: &[&str] = &["client/src", "node/log/src", "node/records/src", "node/src", "operator/src"];

fn folder(file: &str) -> &str {
    file.split(['/', '.']).next().expect("a path has a first part")
}

#[test]
fn the_floors_of_the_node_are_kept() {
    let floor: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(floor, folders)| folders.iter().map(move |name| (*name, floor))).collect();
    let imports = Imports::of(&repository().join("node/src"));
    let mut wrong = Vec::new();
    for (file, imported) in &imports.files {
        if matches!(file.as_str(), "lib.rs" | "main.rs") {
            continue;
        }
        let own = *floor.get(folder(file)).unwrap_or_else(|| panic!("{file}: its folder is on no floor"));
        for other in imported.iter().filter(|other| folder(other) != folder(file)) {
            let below = floor.get(folder(other)).is_some_and(|floor| *floor > own);
            if !below && !EXCEPTIONS.contains(&(file, other)) {
                wrong.push(format!("{file} imports {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that run up, or across a floor:\n{}", wrong.join("\n"));
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    let mut circles = Vec::new();
    for name in CRATES {
        let imports = Imports::of(&repository().join(name));
        assert!(imports.files.values().any(|imported| !imported.is_empty()), "{name}: no import was found");
        circles.extend(imports.circles().iter().map(|circle| format!("{name}: {}", circle.join(", "))));
    }
    assert!(circles.is_empty(), "files that import one another:\n{}", circles.join("\n"));
}

#[test]
fn an_import_is_followed_to_the_file_that_defines_the_name() {
    let imports = Imports::of(&repository().join("node/src"));
    let of = |file: &str, other: &str| imports.files[file].contains(other);
    assert!(of("broker/append.rs", "model/topic_definition.rs"), "through the re-export of model/mod.rs");
    assert!(of("broker/append.rs", "broker/mod.rs"), "what mod.rs itself defines");
    assert!(of("broker/read.rs", "broker/long_poll.rs"));
    assert!(!of("broker/mod.rs", "broker/append.rs"), "a re-export is no import");
    assert!(of("metadata/voters.rs", "metadata/balancer.rs"));
}
