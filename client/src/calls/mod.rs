//! The calls of `chronicle.v1` as methods of [`Client`](crate::client::Client), one file per gRPC service.
//!
//! The top floor of the crate: only `lib.rs` names this folder, and no file in it names another.

mod access_service;
mod admin_service;
mod cluster_service;
mod groups_service;
mod log_service;
mod node_service;
