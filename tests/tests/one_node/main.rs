//! A node as a real process, by itself: its job on real input, what can go wrong around it, and what it tells whoever runs it.
//!
//! Tests run side by side, as many as there are cores, so none may change the test's own process. Programs of their own,
//! beside this folder: `hostile.rs` opens connections by the thousand, `overload.rs` takes all that the machine has.

mod dev_nodes;
mod faults;
mod history;
mod library;
mod lifecycle;
mod live_config;
mod main_job;
mod operations;
mod power;
mod support;
