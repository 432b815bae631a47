//! Process harness, end-to-end tests and benchmarks.
//!
//! [`node`] starts real `chronicle` processes and ends them in every way a machine can, [`cluster`] several of them that find
//! one another, [`netns`] networks between them that can be cut; [`api`] speaks to them over plain gRPC and HTTP without the
//! project's own client, so that a mistake in both cannot hide; [`writer`] keeps writing to one node through crashes,
//! [`history`] to a cluster, and checks what became of it; [`replica`] reads what is on a disk without the node; [`input`]
//! finds real data to feed them; [`imports`] reads which source file imports which; [`collector`] is where spans go; [`mount`] makes small, full and read-only volumes; [`tls`]
//! certificates; [`wire`] bytes that no library would send. The tests lie in `tests/tests`; the benchmark is `tests/src/bin/bench`.
//!
//! Variables: `CHRONICLE_TEST_BINARY` names the program to test, `CHRONICLE_TEST_FACTOR` lengthens the tests that go on for
//! a while, `CHRONICLE_NO_NETNS=1` leaves out those that cut networks, `CHRONICLE_TEST_TLS=1` secures every cluster.

use std::path::PathBuf;

pub mod api;
pub mod binary;
pub mod cluster;
pub mod collector;
pub mod history;
pub mod imports;
pub mod input;
pub mod mount;
pub mod netns;
pub mod node;
pub mod replica;
pub mod tls;
pub mod wire;
pub mod writer;

/// The root of the checkout that this crate was built from.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_path_buf()
}

/// How long a part of a test goes on: `default`, times the number in `CHRONICLE_TEST_FACTOR` where that is set.
pub fn length(default: std::time::Duration) -> std::time::Duration {
    let factor = std::env::var("CHRONICLE_TEST_FACTOR").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1);
    default * factor
}
