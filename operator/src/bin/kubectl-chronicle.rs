//! The program `kubectl-chronicle`, the plugin for kubectl.

use std::process::ExitCode;

use chronicle_operator::plugin::PluginCli;
use clap::Parser;

fn main() -> ExitCode {
    match PluginCli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kubectl chronicle: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
