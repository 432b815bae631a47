//! Generates the Rust code of the wire contract without a protoc binary.

use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 7] = [
    "chronicle/v1/access.proto",
    "chronicle/v1/log.proto",
    "chronicle/v1/admin.proto",
    "chronicle/v1/cluster.proto",
    "chronicle/v1/groups.proto",
    "chronicle/v1/node.proto",
    "chronicle/internal/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), protox::prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
