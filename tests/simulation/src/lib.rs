//! Whole clusters in one thread: the node as it ships on a simulated network, with simulated time, disks and chance, all
//! from one seed.
//!
//! `run` builds a cluster (`machine`, `network`), lets clients write and read (`load`) while it breaks things (`plan`),
//! heals everything, and checks what is stored against what clients were told (the checker of `chronicle-tests`). The same
//! seed does the same again in a fresh process, event for event: chance is seeded for the whole thread
//! (`chronicle_log::simulated`), hash tables included. So every seed runs in a process of its own (`tests/seeds.rs`).
//!
//! Needs `--cfg tokio_unstable`, which lets tokio's own choices be seeded; without it the crate is empty. `make test` runs it;
//! alone it runs with `RUSTFLAGS="--cfg tokio_unstable" CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test -p chronicle-simulation --target-dir target/simulation`.
#![cfg(tokio_unstable)]

mod load;
mod machine;
mod network;
mod plan;
mod run;
mod trace;

pub use run::{Report, run};
pub use trace::Detail;
