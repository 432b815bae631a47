//! Placeholder for the Kubernetes operator: says that it is not functional yet and fails, so that nobody deploys it by
//! mistake.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "chronicle-operator {}: the operator is not implemented yet; run a single node with `chronicle node`",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::FAILURE
}
