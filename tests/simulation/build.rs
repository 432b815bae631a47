//! Makes the one condition that this crate is compiled under known to the compiler's check of conditions.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(tokio_unstable)");
    println!("cargo::rerun-if-changed=build.rs");
}
