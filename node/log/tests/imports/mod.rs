//! Imports among the files of a crate run one way: a file never imports one that imports it, directly or through others.
//!
//! A simple scan of the sources, which knows `crate::`, `super::`, `self::` and the names of child modules, in `use` and in
//! paths. A `pub use` is no import of its own: whoever uses the name imports the file that defines it. Unit tests are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

type Module = Vec<String>;

/// The files of a crate by module, comments, strings and unit tests removed.
struct Sources(BTreeMap<Module, String>);

#[test]
fn imports_among_the_files_of_the_engine_run_one_way() {
    let sources = Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    // That the scan sees what is there: a plain import, a name that is exported again, a path in code, a child module.
    for (from, to) in [("store", "workers"), ("store", "log::close"), ("log::read", "log"), ("debug", "id")] {
        assert!(sources.imports(&module(from)).contains(&module(to)), "{from} imports {to}");
    }
    assert_eq!(sources.circle(), None);
}

#[test]
fn imports_among_the_files_of_the_record_crate_run_one_way() {
    let sources = Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../records/src"));
    for (from, to) in [("batch", "record"), ("compression", "compression::lz4"), ("record", "limits")] {
        assert!(sources.imports(&module(from)).contains(&module(to)), "{from} imports {to}");
    }
    assert_eq!(sources.circle(), None);
}

#[test]
fn a_circle_of_imports_is_found() {
    let circle = |files: &[(&str, &str)]| {
        Sources(files.iter().map(|(name, text)| (module(name), strip(text))).collect()).circle()
    };
    let lib = ("", "mod a; mod b; mod c; pub use c::{C, other::D};");
    assert_eq!(circle(&[lib, ("a", "use crate::{b::B, C};"), ("b", "// crate::a"), ("c", "")]), None);
    assert_eq!(
        circle(&[lib, ("a", "use crate::{x, b::{B, B2}};"), ("b", "fn f() -> crate::C {}"), ("c", "use super::a::A;")]),
        Some("a -> b -> c -> a".to_owned())
    );
    let child = ("a::child", "use super::A;");
    assert_eq!(circle(&[("", "mod a;"), ("a", "mod child; pub use child::C;"), child]), None);
    assert_eq!(
        circle(&[("", "mod a;"), ("a", "mod child; fn f() { child::C }"), child]),
        Some("a -> a::child -> a".to_owned())
    );
}

fn module(name: &str) -> Module {
    name.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

impl Sources {
    fn read(src: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut dirs = vec![(src.to_owned(), Module::new())];
        while let Some((dir, at)) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                let inside = || at.iter().cloned().chain([name.clone()]).collect();
                if path.is_dir() {
                    dirs.push((path.clone(), inside()));
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let module = if name == "lib" || name == "mod" { at.clone() } else { inside() };
                    files.insert(module, strip(&fs::read_to_string(&path).unwrap()));
                }
            }
        }
        assert!(files.len() > 5, "{} has sources", src.display());
        Self(files)
    }

    /// The modules whose files a file imports.
    fn imports(&self, module: &Module) -> BTreeSet<Module> {
        let mut found = BTreeSet::new();
        for (base, path, exported) in self.paths(module) {
            if exported {
                continue;
            }
            let file = self.file_of(base.clone(), &path);
            let whole: Module = base.into_iter().chain(path).collect();
            if file == whole {
                // The module itself: any name that it exports may be used through it.
                let exports = self.paths(&file).into_iter().filter(|(_, _, exported)| *exported);
                found.extend(exports.map(|(base, path, _)| self.file_of(base, &path)));
            }
            found.insert(file);
        }
        found.remove(module);
        found
    }

    /// Every path in a file that starts in its crate: from which module, the names, and whether it is in a `pub use`.
    fn paths(&self, module: &Module) -> Vec<(Module, Vec<String>, bool)> {
        let text = &self.0[module];
        let mut starts: Vec<(usize, Module)> = Vec::new();
        let mut add = |word: &str, base: &[String]| {
            for (at, _) in text.match_indices(&format!("{word}::")) {
                let before = text[..at].chars().next_back();
                if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    starts.push((at + word.len() + 2, base.to_vec()));
                }
            }
        };
        add("crate", &[]);
        add("self", module);
        add("super", &module[..module.len().saturating_sub(1)]);
        for child in self.0.keys().filter(|child| child.len() == module.len() + 1 && child.starts_with(module)) {
            add(&child[module.len()], child);
        }
        let mut paths = Vec::new();
        for (at, base) in starts {
            let statement = text[..at].rfind([';', '}', ']']).map_or(0, |end| end + 1);
            let statement = text[statement..at].trim_start();
            let exported = statement.starts_with("pub") && statement.contains(" use ");
            let mut names = Vec::new();
            tree(&text[at..], &mut Vec::new(), &mut names);
            paths.extend(names.into_iter().map(|names| (base.clone(), names, exported)));
        }
        paths
    }

    /// The module whose file defines what a path names.
    fn file_of(&self, mut module: Module, path: &[String]) -> Module {
        for name in path {
            if name == "super" {
                module.pop();
                continue;
            }
            let child: Module = module.iter().chain([name]).cloned().collect();
            if self.0.contains_key(&child) {
                module = child;
                continue;
            }
            let mut exports = self.paths(&module).into_iter().filter(|(_, _, exported)| *exported);
            return match exports.find(|(_, names, _)| names.last() == Some(name)) {
                Some((base, names, _)) => self.file_of(base, &names),
                None => module,
            };
        }
        module
    }

    /// A circle of imports, if there is one.
    fn circle(&self) -> Option<String> {
        let imports: BTreeMap<_, _> = self.0.keys().map(|module| (module, self.imports(module))).collect();
        let mut done = BTreeSet::new();
        self.0.keys().find_map(|module| visit(module, &imports, &mut Vec::new(), &mut done))
    }
}

fn visit(
    module: &Module,
    imports: &BTreeMap<&Module, BTreeSet<Module>>,
    above: &mut Vec<Module>,
    done: &mut BTreeSet<Module>,
) -> Option<String> {
    if let Some(start) = above.iter().position(|other| other == module) {
        let circle: Vec<String> = above[start..].iter().chain([module]).map(|module| module.join("::")).collect();
        return Some(circle.join(" -> "));
    }
    if !done.insert(module.clone()) {
        return None;
    }
    above.push(module.clone());
    let found = imports[module].iter().find_map(|next| visit(next, imports, above, done));
    above.pop();
    found
}

/// The paths of a use tree at the start of `text`, each name by name. Returns what follows the tree.
fn tree<'a>(text: &'a str, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let before = rest.len();
            rest = tree(rest, &mut prefix.clone(), paths).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
            if rest.len() == before {
                // Not a use tree after all: a block of code.
                return rest;
            }
        }
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name != "self" && !name.is_empty() {
        prefix.push(name.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(rest) => tree(rest, prefix, paths),
        None => {
            paths.push(prefix.clone());
            rest
        }
    }
}

/// The text without comments, the content of strings, and unit tests.
fn strip(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut stripped = String::new();
    for line in text.lines() {
        let (mut in_string, mut before) = (false, ' ');
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if before != '\\' && before != '\'' => in_string = !in_string,
                '/' if !in_string && chars.peek() == Some(&'/') => break,
                _ if !in_string => stripped.push(c),
                _ => {}
            }
            before = c;
        }
        stripped.push('\n');
    }
    stripped
}
