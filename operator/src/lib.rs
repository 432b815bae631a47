#![forbid(unsafe_code)]
pub mod api;
pub mod build;
pub mod plan;
mod quantity;
pub mod admin;
