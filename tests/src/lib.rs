//! Process harness, end-to-end tests and benchmarks.
//!
//! [`node`] starts real `chronicle` processes and ends them in every way a machine can; [`api`] speaks to them over plain
//! gRPC and HTTP without the project's own client, so that a mistake in both cannot hide; [`writer`] keeps writing through
//! crashes; [`input`] finds real data to feed them; [`mount`] makes small, full and read-only volumes. The tests lie in
//! `tests/tests`; the benchmark is `tests/src/bin/bench`.

use std::path::PathBuf;

pub mod api;
pub mod binary;
pub mod input;
pub mod mount;
pub mod node;
pub mod writer;

/// The root of the checkout that this crate was built from.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_path_buf()
}
