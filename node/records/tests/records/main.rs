//! The public interface of `chronicle-records`, from outside.

mod common;
mod fuzz;
mod interop;
mod properties;
mod refusals;
mod roundtrip;
mod sparse;
