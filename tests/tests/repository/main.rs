//! What holds for the repository itself, without a node.

mod licences;
mod rules;
