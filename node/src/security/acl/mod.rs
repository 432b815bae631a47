//! Access rules (ACLs) and the evaluator that decides by them. Pure: no I/O.
//!
//! `acl_rules.rs` defines the rules, which are also the stored form; `evaluate.rs` is the index that decides one
//! request in well under a microsecond. Neither depends on connections, time or configuration: `broker/authorizer.rs`
//! combines these.

mod evaluate;
mod rules;

pub use evaluate::{Decision, Evaluator};
pub(crate) use rules::check_principal;
pub use rules::{
    AclFilter, AclRule, Action, CLUSTER, EVERY_NAME, Effect, InvalidRule, PRINCIPAL_BYTES_MAX, PatternKind,
    ResourceKind,
};

#[cfg(test)]
mod tests;
