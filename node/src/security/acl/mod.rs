//! Access rules (ACLs) and the evaluator that decides by them. Pure: no I/O.
//!
//! `acl_rules.rs` defines the rules, which are also the stored form; `evaluate.rs` is the index that decides one
//! request in well under a microsecond. Neither depends on connections, time or configuration: `broker/authorizer.rs`
//! combines these.

mod acl_rules;
mod evaluate;

pub(crate) use acl_rules::check_principal;
pub use acl_rules::{
    AclFilter, AclRule, Action, CLUSTER, EVERY_NAME, Effect, InvalidRule, PRINCIPAL_BYTES_MAX, PatternKind,
    ResourceKind,
};
pub use evaluate::{Decision, Evaluator};

#[cfg(test)]
mod tests;
