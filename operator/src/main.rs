//! The program `chronicle-operator`.

use std::process::ExitCode;

use chronicle_operator::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chronicle-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
