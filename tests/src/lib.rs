//! Process harness, end-to-end tests and benchmarks.
//!
//! [`node`] starts real `chronicle` processes and ends them in every way that a machine can. [`cluster`] runs several
//! of them as a cluster, and [`netns`] makes networks between them that can be partitioned. [`api`] calls them over
//! plain gRPC and HTTP without the client library of the project, so that a bug in both node and client cannot hide.
//! [`writer`] writes to one node through crashes, [`history`] to a cluster, and both check the outcome. [`replica`]
//! reads the disk of a node without the node. [`input`] finds real data to write; [`imports`] finds which source file
//! imports which; [`collector`] receives spans; [`mount`] makes small, full and read-only volumes; [`tls`] makes
//! certificates; [`faults`] makes disks and clocks that fail, and [`powerloss`] what a power failure can leave of a data
//! folder; [`wire`] sends bytes that no library would send. The tests are in `tests/tests`; the benchmark is
//! `tests/src/bin/bench`.
//!
//! Variables: `CHRONICLE_TEST_BINARY` names the program to test, `CHRONICLE_TEST_FACTOR` multiplies the duration of the
//! long tests, `CHRONICLE_NO_NETNS=1` leaves out the tests that partition networks, `CHRONICLE_TEST_TLS=1` enables TLS
//! in every cluster.

use std::path::PathBuf;

pub mod api;
pub mod binary;
pub mod cluster;
pub mod collector;
pub mod faults;
pub mod history;
pub mod imports;
pub mod input;
pub mod mount;
pub mod netns;
pub mod node;
pub mod powerloss;
pub mod replica;
pub mod tls;
pub mod wire;
pub mod writer;

/// The root of the checkout that this crate was built from.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_path_buf()
}

/// Duration of a part of a test: `default`, times the number in `CHRONICLE_TEST_FACTOR` where that is set.
pub fn length(default: std::time::Duration) -> std::time::Duration {
    let factor = std::env::var("CHRONICLE_TEST_FACTOR").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1);
    default * factor
}
