//! Rules about the repository itself: where `unsafe` may be, that every crate inherits the lints, that documents point
//! at things that exist, and that the container build can find what it copies.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use chronicle_tests::repository;

/// Files below the repository that git tracks or would track, by extension.
fn files(extension: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("the repository can be listed") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", "data", ".git"].contains(&name.as_str()) {
                    walk(&path, extension, found);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&repository(), extension, &mut found);
    assert!(!found.is_empty(), "no *.{extension} in {}", repository().display());
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

/// An allocator cannot be written without `unsafe`; this one only counts, in tests.
const COUNTS_ALLOCATIONS: &str = "tests/fuzz/src/allocations.rs";

#[test]
fn unsafe_code_lives_only_in_the_log_engine() {
    let mut found = Vec::new();
    for path in files("rs") {
        if shown(&path).starts_with("node/log/") || shown(&path) == COUNTS_ALLOCATIONS {
            continue;
        }
        for (number, line) in fs::read_to_string(&path).expect("a source file is UTF-8").lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            // Looks for the keyword before what it can introduce; the words are kept apart here so that this file passes.
            let opens = ["{", "fn ", "impl ", "trait ", "extern ", "("];
            if opens.iter().any(|open| code.contains(&format!("{} {open}", "unsafe")))
                || code.contains(&format!("{}(", "unsafe"))
            {
                found.push(format!("{}:{}", shown(&path), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "unsafe outside node/log: {found:?}");
}

#[test]
fn every_crate_inherits_the_workspace_lints() {
    for path in files("toml") {
        if !path.ends_with("Cargo.toml") || path == repository().join("Cargo.toml") {
            continue;
        }
        let manifest = fs::read_to_string(&path).expect("a manifest is UTF-8");
        if shown(&path) == "node/log/Cargo.toml" {
            // May hold unsafe code, so it repeats the table without that one lint, and every block must say why it holds.
            for lint in ["missing_docs", "undocumented_unsafe_blocks", "unsafe_op_in_unsafe_fn"] {
                assert!(manifest.contains(lint), "{}: lint {lint} is missing", shown(&path));
            }
        } else {
            assert!(manifest.contains("[lints]\nworkspace = true"), "{}: does not inherit the lints", shown(&path));
        }
        assert!(manifest.contains("license.workspace = true"), "{}: does not inherit the licence", shown(&path));
    }
}

/// A heading's anchor as GitHub makes it: lower case, spaces to dashes, punctuation dropped.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// The text of a document outside fenced code blocks.
fn prose(text: &str) -> String {
    let mut fenced = false;
    text.lines()
        .filter(|line| {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                return false;
            }
            !fenced
        })
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn anchors(path: &Path) -> HashSet<String> {
    prose(&fs::read_to_string(path).expect("a document is UTF-8"))
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for path in files("md") {
        let text = prose(&fs::read_to_string(&path).expect("a document is UTF-8"));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if ["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
                continue;
            }
            checked += 1;
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file =
                if file.is_empty() { path.clone() } else { path.parent().expect("a file has a folder").join(file) };
            if !file.exists() {
                broken.push(format!("{}: {target}: no such file", shown(&path)));
            } else if !fragment.is_empty() && !anchors(&file).contains(fragment) {
                broken.push(format!("{}: {target}: no such heading", shown(&path)));
            }
        }
    }
    assert!(checked > 10, "only {checked} links found");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn paths_named_in_documents_exist() {
    let roots = ["node/", "client/", "proto/", "operator/", "tests/", "docs/", "deploy/", "charts/", ".ci/"];
    let mut missing = Vec::new();
    for path in files("md") {
        let text = prose(&fs::read_to_string(&path).expect("a document is UTF-8"));
        // Odd pieces between backquotes are code.
        for code in text.split('`').skip(1).step_by(2) {
            let plain = code.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && roots.iter().any(|root| code.starts_with(root)) && !repository().join(code).exists() {
                missing.push(format!("{}: {code}", shown(&path)));
            }
        }
    }
    assert!(missing.is_empty(), "documents name paths that do not exist:\n{}", missing.join("\n"));
}

#[test]
fn the_dockerfile_has_both_targets_and_finds_what_it_copies() {
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).expect("there is a Dockerfile");
    let joined = dockerfile.replace("\\\n", " ");
    let mut stages: HashSet<String> = HashSet::new();
    let mut arguments: HashMap<String, String> = HashMap::new();
    for line in joined.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            // An argument stands for its default.
            ["ARG", argument] => {
                if let Some((name, default)) = argument.split_once('=') {
                    arguments.insert(format!("${{{name}}}"), default.to_string());
                }
            }
            ["FROM", base, "AS", name] => {
                let base = arguments.get(*base).map_or(*base, String::as_str);
                let known = stages.contains(base) || base == "scratch" || base.contains(':');
                assert!(known, "{line}: the base {base} is no stage above and has no version");
                assert!(!base.ends_with(":latest"), "{line}: `latest` is no version");
                stages.insert((*name).to_string());
            }
            ["FROM", ..] => panic!("{line}: every stage has a name"),
            ["COPY", rest @ ..] => {
                let from = rest.iter().find_map(|word| word.strip_prefix("--from="));
                let sources: Vec<&&str> = rest.iter().filter(|word| !word.starts_with("--")).collect();
                let (_, sources) = sources.split_last().expect("COPY has a destination");
                match from {
                    Some(stage) => assert!(stages.contains(stage), "{line}: no stage {stage} above"),
                    None => {
                        for source in sources {
                            assert!(repository().join(source).exists(), "{line}: {source} does not exist");
                        }
                    }
                }
            }
            _ => {}
        }
    }
    for target in ["node", "operator"] {
        assert!(stages.contains(target), "no target {target}");
    }
    let toolchain = fs::read_to_string(repository().join("rust-toolchain.toml")).expect("there is a toolchain file");
    let version = toolchain.split('"').nth(1).expect("the channel is quoted");
    assert!(dockerfile.contains(&format!("FROM rust:{version}-")), "the image does not build with Rust {version}");
    // What is copied must not be left out of the build context.
    let ignored = fs::read_to_string(repository().join(".dockerignore")).expect("there is a .dockerignore");
    for line in joined.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        for source in &words[..words.len() - 1] {
            let kept = ignored
                .lines()
                .filter_map(|line| line.strip_prefix('!'))
                .any(|keep| *source == keep || source.starts_with(&format!("{keep}/")));
            assert!(kept, "{source} is copied, but .dockerignore leaves it out");
        }
    }
}

#[test]
fn the_test_command_counts_and_fails_as_cargo_does() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fake = dir.path().join("cargo");
    let kube = dir.path().join("kube");
    let write = |file: &Path, script: &str| {
        fs::write(file, format!("#!/bin/sh\n{script}\n")).expect("the stand-in can be written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(file, mode).expect("the stand-in can be made executable");
    };
    // One of its scripts, and the sum.
    write(&kube, "echo '10 passed, 0 failed'; echo '100 passed, 0 failed'");
    let run = |script: &str| {
        write(&fake, script);
        // What runs on Kubernetes is another command: here it says at once what it does at its end.
        let output = Command::new(repository().join(".ci/test"))
            .env("CARGO", &fake)
            .env("CHRONICLE_TEST_KUBE", &kube)
            .output()
            .expect("the test command starts");
        let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or("").to_string();
        (output.status.success(), last)
    };
    let ok = "echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s'";
    let bad = "echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out'";
    // Cargo runs three times: for the workspace, for clusters that are secured, and for the simulation.
    assert_eq!(run(&format!("{ok}\n{ok}")), (true, "118 passed, 0 failed".into()));
    assert_eq!(run(&format!("{ok}\n{bad}\nexit 101")), (false, "115 passed, 3 failed".into()));
    assert_eq!(run("echo 'error: could not compile' >&2; exit 101"), (false, "100 passed, 0 failed".into()));
    // A test program that dies prints no result line; cargo's status alone says so.
    assert_eq!(run(&format!("{ok}\nexit 101")), (false, "109 passed, 0 failed".into()));
    // The simulation alone fails.
    let simulation = format!("{ok}\ncase \"$*\" in *simulation*) exit 101 ;; esac");
    assert_eq!(run(&simulation), (false, "109 passed, 0 failed".into()));
    // Kubernetes alone fails.
    write(&kube, "echo '99 passed, 1 failed'; exit 1");
    assert_eq!(run(ok), (false, "108 passed, 1 failed".into()));
}

#[test]
fn every_make_verb_that_the_readme_names_exists() {
    let makefile = fs::read_to_string(repository().join("Makefile")).expect("there is a Makefile");
    let readme = fs::read_to_string(repository().join("README.md")).expect("there is a README");
    let mut named = 0;
    for rest in readme.split("make ").skip(1) {
        let verb: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        if readme.contains(&format!("`make {verb}`")) || readme.contains(&format!("\nmake {verb} ")) {
            named += 1;
            assert!(makefile.contains(&format!("\n{verb}: ")), "README names `make {verb}`, the Makefile does not");
        }
    }
    assert!(named >= 2, "README names no verbs");
}
