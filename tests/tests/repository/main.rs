//! What holds for the repository itself, without a node.

mod layers;
mod licences;
mod names;
mod rules;
