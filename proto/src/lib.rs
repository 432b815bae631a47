//! The wire contract of Chronicle: `chronicle.v1` messages, clients and servers, generated from `proto/chronicle/v1`.
//!
//! The `.proto` files are the reference for what each field means; `docs/errors.md` for the reasons in error details.

#[allow(missing_docs, clippy::all, rustdoc::all)]
/// Version 1 of the public API.
pub mod v1 {
    tonic::include_proto!("chronicle.v1");
}

#[allow(missing_docs, clippy::all, rustdoc::all)]
/// What nodes say to one another; not a public API.
pub mod internal {
    tonic::include_proto!("chronicle.internal.v1");
}

/// The encoded `FileDescriptorSet` of every file of the contract, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
