//! The node from outside: its broker on a real disk, its listeners over real sockets, its command line.
//!
//! One program, because each test program links the whole node. Tests run side by side in it, so none may change the
//! process: environment, working directory, limits, global state of libraries. `clock.rs` and `agreed.rs` beside this folder simulate
//! time for their threads and are programs of their own.

mod access;
mod broker;
mod cli;
mod cut_off;
mod disk_faults;
mod groups;
mod grpc;
mod http;
mod ops;
mod peers;
mod reads;
mod serving;
mod sparse_entries;
mod stalled_disk;
mod support;
mod unopenable;
