//! The client against nodes in memory that fail on order.

mod calls;
mod cluster;
mod consumer;
mod epochs;
mod fake;
mod inputs;
mod producer;
