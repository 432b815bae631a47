//! Every dependency's licence is one that an Apache-2.0 project may ship.
//!
//! Reads the resolved graph (`cargo metadata --locked`) and evaluates each crate's SPDX expression: a choice (`OR`)
//! needs one allowed side, a sum (`AND`) needs all of them.

use std::process::Command;

use serde_json::Value;

/// Licences that may be combined with Apache-2.0 and ask for no more than their notice.
const ALLOWED: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates that may carry another licence: name, licence and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[(
    "webpki-root-certs",
    "CDLA-Permissive-2.0",
    "data, not code: Mozilla's list of authorities, under a permissive licence; only built for systems other than Linux",
)];

/// Whether `expression` can be satisfied with licences for which `allowed` holds.
fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    // Before SPDX expressions, `/` meant a choice.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens: &tokens, allowed };
    let result = parser.any()?;
    match parser.tokens.first() {
        None => Ok(result),
        Some(rest) => Err(format!("`{rest}` left over in `{expression}`")),
    }
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    allowed: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parser<'a> {
    fn take(&mut self, token: &str) -> bool {
        let found = self.tokens.first() == Some(&token);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn name(&mut self) -> Result<&'a str, String> {
        match self.tokens.split_first() {
            Some((&name, rest)) if !["OR", "AND", "WITH", "(", ")"].contains(&name) => {
                self.tokens = rest;
                Ok(name)
            }
            other => Err(format!("a licence name is missing before {other:?}")),
        }
    }

    fn any(&mut self) -> Result<bool, String> {
        let mut result = self.all()?;
        while self.take("OR") {
            result |= self.all()?;
        }
        Ok(result)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut result = self.one()?;
        while self.take("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let result = self.any()?;
            return if self.take(")") { Ok(result) } else { Err("`)` is missing".into()) };
        }
        let name = self.name()?;
        if self.take("WITH") {
            let exception = self.name()?;
            return Ok((self.allowed)(&format!("{name} WITH {exception}")));
        }
        Ok((self.allowed)(name))
    }
}

fn packages() -> Vec<Value> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--locked", "--format-version", "1"])
        .current_dir(chronicle_tests::repository())
        .output()
        .expect("cargo metadata starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    match metadata["packages"].take() {
        Value::Array(packages) => packages,
        other => panic!("packages is no list: {other}"),
    }
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let packages = packages();
    assert!(packages.len() > 100, "only {} packages: not the whole graph", packages.len());
    let mut refused = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().expect("a package has a name");
        let Some(expression) = package["license"].as_str() else {
            refused.push(format!("{name}: names no licence"));
            continue;
        };
        let allowed =
            |id: &str| ALLOWED.contains(&id) || EXCEPTIONS.iter().any(|(n, licence, _)| *n == name && *licence == id);
        match satisfied(expression, &allowed) {
            Ok(true) => {}
            Ok(false) => refused.push(format!("{name}: {expression}")),
            Err(reason) => refused.push(format!("{name}: {expression}: {reason}")),
        }
    }
    assert!(refused.is_empty(), "licences outside the list:\n{}", refused.join("\n"));
}

#[test]
fn no_exception_outlives_its_crate() {
    let packages = packages();
    for (name, licence, reason) in EXCEPTIONS {
        assert!(!reason.is_empty(), "{name}: an exception needs a reason");
        let used = packages.iter().any(|p| p["name"] == *name && p["license"].as_str().unwrap_or("").contains(licence));
        assert!(used, "{name}: no dependency of this name asks for {licence} any more");
    }
}

#[test]
fn expressions_are_read_as_spdx_defines_them() {
    let allowed = |id: &str| ALLOWED.contains(&id);
    for (expression, expected) in [
        ("MIT", true),
        ("MIT OR GPL-3.0-only", true),
        ("MIT AND GPL-3.0-only", false),
        ("GPL-2.0-only/MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("GPL-3.0-only OR MIT AND MPL-2.0", false),
        ("(GPL-3.0-only OR MIT) AND MPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-2.0-only WITH Classpath-exception-2.0", false),
        ("MIT OR Apache-2.0 OR LGPL-2.1-or-later", true),
    ] {
        assert_eq!(satisfied(expression, &allowed), Ok(expected), "{expression}");
    }
    for broken in ["", "MIT OR", "(MIT", "MIT)", "AND MIT", "MIT GPL-3.0-only"] {
        assert!(satisfied(broken, &allowed).is_err(), "{broken} is no expression");
    }
}
