//! The `chronicle` binary: the node, the development server and the command line client.
#![forbid(unsafe_code)]

mod cli;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
