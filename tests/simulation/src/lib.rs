//! Whole clusters in one thread: the node as it ships on a simulated network, with simulated time, disks and chance, all
//! from one seed.
//!
//! `run` builds a cluster (`machine`, `network`), lets clients write and read (`load`, `ledger`, `trail`, `positions`) while it
//! breaks things (`plan`, `damage`), heals everything, and checks what is stored against what clients were told (`checks`,
//! `linearizability`, and the checker of `chronicle-tests`). The same seed does the same again in a fresh process, event for
//! event: chance is seeded for the whole thread (`chronicle_log::simulated`), hash tables included. So every seed runs in a
//! process of its own (`processes`).
//!
//! Needs `--cfg tokio_unstable`, which lets tokio's own choices be seeded; without it the crate is empty. With
//! `--cfg chronicle_mutants` beside it, `tests/mutants.rs` shows which defects the simulation finds. `make test` runs all of it,
//! `make sim` and `make mutants` a part.
#![cfg(tokio_unstable)]

mod board;
mod checks;
mod damage;
mod ledger;
mod linearizability;
mod load;
mod machine;
mod network;
mod plan;
mod positions;
pub mod processes;
mod run;
mod tally;
mod trace;
mod trail;

pub use run::{Report, run};
pub use trace::Detail;
