//! The log engine through its public interface, on disks in memory, real ones and failing ones.
//!
//! `memory.rs` beside this folder counts what the whole process allocates and is a program of its own.

mod common;
mod conformance;
mod damage;
mod driven;
mod engine;
mod faults;
mod inspect;
mod model;
mod repair;
mod verify;
