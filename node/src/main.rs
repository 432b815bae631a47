//! The `chronicle` binary: the node, the development server and the command line client.
#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
