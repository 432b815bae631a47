//! Who may do what: rules, and the pure evaluator that answers from them.
//!
//! `rules` is the vocabulary (and what is stored), `evaluate` the index that answers one question in well under a
//! microsecond. Neither knows of connections, time or configuration: `super::authorizer` does.

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
