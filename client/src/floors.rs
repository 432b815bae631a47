//! The test of the crate's floors: no two files import each other, directly or through others.
//!
//! It reads the sources. A file imports another when it declares it (`mod x;`) or names a path in it by `crate::` or `super::`,
//! in code or in its unit tests; comments do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every file by its path below `src`, with its text.
type Sources = BTreeMap<String, String>;

fn sources() -> Sources {
    fn read(folder: &Path, below: &str, sources: &mut Sources) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = format!("{below}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                read(&entry.path(), &format!("{path}/"), sources);
            } else if path.ends_with(".rs") {
                sources.insert(path, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let mut sources = Sources::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    // The imports in this file are test data.
    sources.remove("floors.rs");
    sources
}

/// The module path of a file: `producer/mod.rs` is `[producer]`, `lib.rs` is `[]`.
fn module_of(file: &str) -> Vec<String> {
    let module = file.trim_end_matches(".rs");
    let module = module.strip_suffix("/mod").unwrap_or(module);
    if module == "lib" { Vec::new() } else { module.split('/').map(str::to_owned).collect() }
}

/// The file that defines the longest prefix of a path.
fn file_of(sources: &Sources, path: &[String]) -> String {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].join("/"))
        .find_map(|module| {
            [format!("{module}.rs"), format!("{module}/mod.rs")].into_iter().find(|file| sources.contains_key(file))
        })
        .unwrap_or_else(|| "lib.rs".to_owned())
}

/// The paths that a use tree stands for: `a::{b, c::D}` is `a::b` and `a::c::D`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim_start();
    if let Some(group) = tree.strip_prefix('{') {
        let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' | ',' if depth == 0 => {
                    let item = &group[start..at];
                    if !item.trim().is_empty() {
                        paths.extend(expand(item));
                    }
                    start = at + 1;
                    if letter == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
        return paths;
    }
    let end = tree.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(tree.len());
    let name = tree[..end].to_owned();
    let rest = tree[end..].strip_prefix("::").map_or_else(|| vec![Vec::new()], expand);
    rest.into_iter().map(|path| [vec![name.clone()], path].concat()).collect()
}

/// The files that one file imports.
fn imports(sources: &Sources, file: &str) -> BTreeSet<String> {
    let code: Vec<&str> = sources[file].lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let (body, tests) = code.split_once("\nmod tests {").unwrap_or((&code, ""));
    let module = module_of(file);
    let children = body.lines().filter_map(|line| {
        let (_, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
        Some(file_of(sources, &[&module[..], &[name.to_owned()]].concat()))
    });
    let mut imports: BTreeSet<String> = children.collect();
    let in_tests = [&module[..], &["tests".to_owned()]].concat();
    for (text, module) in [(body, &module), (tests, &in_tests)] {
        for root in ["crate", "super"] {
            for (at, _) in text.match_indices(&format!("{root}::")) {
                let is_whole = !text[..at].ends_with(|letter: char| letter.is_alphanumeric() || "_:".contains(letter));
                for path in expand(&text[at..]).into_iter().filter(|_| is_whole) {
                    let ups = path.iter().take_while(|name| *name == "super").count();
                    let base: &[String] = if root == "crate" { &[] } else { &module[..module.len() - ups] };
                    imports.insert(file_of(sources, &[base, &path[ups.max(1)..]].concat()));
                }
            }
        }
    }
    imports.remove(file);
    imports
}

/// The imports that are part of circles or lie between two of them, as `importer -> imported`.
fn circles(sources: &Sources) -> Vec<String> {
    let mut left: BTreeMap<&String, BTreeSet<String>> =
        sources.keys().map(|file| (file, imports(sources, file))).collect();
    loop {
        let files: BTreeSet<String> = left.keys().map(|file| (*file).clone()).collect();
        left.values_mut().for_each(|imports| imports.retain(|file| files.contains(file)));
        let imported: BTreeSet<String> = left.values().flatten().cloned().collect();
        left.retain(|file, imports| !imports.is_empty() && imported.contains(*file));
        if left.len() == files.len() {
            let edges = left.iter().flat_map(|(file, imports)| imports.iter().map(move |to| format!("{file} -> {to}")));
            return edges.collect();
        }
    }
}

#[test]
fn no_files_import_each_other() {
    let sources = sources();
    assert!(imports(&sources, "client.rs").contains("producer/mod.rs"), "the scan finds imports");
    assert_eq!(circles(&sources), Vec::<String>::new());
}

#[test]
fn no_two_files_have_the_same_name() {
    let sources = sources();
    let name = |file: &str| file.rsplit('/').next().unwrap_or(file).to_owned();
    let names: Vec<String> = sources.keys().map(|file| name(file)).filter(|name| name != "mod.rs").collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
}

#[test]
fn a_circle_is_found_in_every_form() {
    let scan = |files: &[(&str, &str)]| {
        circles(&files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect())
    };
    let base = ("lib.rs", "mod a;\nmod b;\n");
    assert_eq!(scan(&[base, ("a.rs", "use crate::b::B;"), ("b.rs", "// crate::a::A")]), Vec::<String>::new());
    let circle = ["a.rs -> b.rs", "b.rs -> a.rs"];
    for back in
        ["use crate::a::A;", "use crate::{\n    b::C,\n    a::{A, B},\n};", "fn f() { crate::a::f() }", "use super::a;"]
    {
        assert_eq!(scan(&[base, ("a.rs", "use crate::b::B;"), ("b.rs", back)]), circle, "{back}");
    }
    for back in ["use super::A;", "use crate::a::A;", "\nmod tests {\n    use super::super::A;\n}"] {
        let found = scan(&[base, ("a/mod.rs", "mod c;"), ("a/c.rs", back), ("b.rs", "")]);
        assert_eq!(found, ["a/c.rs -> a/mod.rs", "a/mod.rs -> a/c.rs"], "{back}");
    }
    assert_eq!(scan(&[base, ("a.rs", "use crate::v1;"), ("b.rs", "")]), ["a.rs -> lib.rs", "lib.rs -> a.rs"]);
    let own = "mod c;\n\nmod tests {\n    use super::*;\n}";
    assert_eq!(scan(&[base, ("a/mod.rs", own), ("a/c.rs", ""), ("b.rs", "")]), Vec::<String>::new());
}
