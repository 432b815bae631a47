//! The log engine through its public interface, on disks in memory, real ones and failing ones.
//!
//! Beside this folder, `memory.rs` counts what the whole process allocates and `driven.rs` looks at its threads: programs of their own.

mod common;
mod conformance;
mod cut_tail;
mod damage;
mod ends;
mod engine;
mod every_file;
mod faults;
mod format;
mod fuzz;
mod independent_reader;
mod inspect;
mod marks;
mod model;
mod origin;
mod repair;
mod salvage;
mod verify;
