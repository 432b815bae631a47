//! Applies the commands that change access rules and quotas. Deterministic; a rule is validated before it is proposed.

use std::collections::BTreeSet;

use super::Refusal;
use super::controller_state::{CommandOutcome, ControllerState};
use crate::security::{AclFilter, AclRule, Quota};

/// Maximum number of rules in a cluster.
pub const RULES_MAX: usize = 10_000;
/// Maximum size of all rules' principals and names together, in bytes: every node and every snapshot contains them.
pub const RULES_BYTES_MAX: usize = 4 << 20;
/// Maximum number of quotas in a cluster.
pub const QUOTAS_MAX: usize = 10_000;

fn bytes(rule: &AclRule) -> usize {
    rule.principal.len() + rule.name.len()
}

impl ControllerState {
    /// Adds all rules or none; rules that exist are not added again. The outcome contains the added ones.
    pub(super) fn create_acls(&mut self, rules: Vec<AclRule>) -> Result<CommandOutcome, Refusal> {
        let new: BTreeSet<AclRule> = rules.into_iter().filter(|rule| !self.access.rules.contains(rule)).collect();
        if self.access.rules.len() + new.len() > RULES_MAX {
            return Err(Refusal::TooManyRules { rules: self.access.rules.len() + new.len(), limit: RULES_MAX });
        }
        let total: usize = self.access.rules.iter().chain(&new).map(bytes).sum();
        if total > RULES_BYTES_MAX {
            return Err(Refusal::RulesTooLarge { bytes: total, limit: RULES_BYTES_MAX });
        }
        if !new.is_empty() {
            self.access.rules.extend(new.iter().cloned());
            self.access.revision += 1;
        }
        Ok(CommandOutcome::Acls(new.into_iter().collect()))
    }

    /// Deletes the rules that match any of the filters. The outcome contains the deleted ones.
    pub(super) fn delete_acls(&mut self, filters: &[AclFilter]) -> CommandOutcome {
        let matched = |rule: &AclRule| filters.iter().any(|filter| filter.matches(rule));
        let (deleted, kept): (BTreeSet<_>, BTreeSet<_>) =
            std::mem::take(&mut self.access.rules).into_iter().partition(|rule| matched(rule));
        self.access.rules = kept;
        self.access.revision += u64::from(!deleted.is_empty());
        CommandOutcome::Acls(deleted.into_iter().collect())
    }

    /// Sets (`Some`) or removes the quota of a principal, or the default one (`None`).
    pub(super) fn set_quota(
        &mut self,
        principal: Option<String>,
        quota: Option<Quota>,
    ) -> Result<CommandOutcome, Refusal> {
        let access = &mut self.access;
        match (principal, quota) {
            (None, quota) => access.default_quota = quota,
            (Some(principal), None) => _ = access.quotas.remove(&principal),
            (Some(principal), Some(quota)) => {
                if !access.quotas.contains_key(&principal) && access.quotas.len() >= QUOTAS_MAX {
                    return Err(Refusal::TooManyQuotas(QUOTAS_MAX));
                }
                access.quotas.insert(principal, quota);
            }
        }
        access.revision += 1;
        Ok(CommandOutcome::Done(None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ControllerCommand;
    use super::*;
    use crate::security::{Action, Effect, PatternKind, ResourceKind};

    fn rule(principal: &str, name: &str) -> AclRule {
        AclRule {
            principal: principal.into(),
            kind: ResourceKind::Topic,
            pattern: PatternKind::Literal,
            name: name.into(),
            action: Action::Read,
            effect: Effect::Allow,
        }
    }

    fn create(rules: &[AclRule]) -> ControllerCommand {
        ControllerCommand::CreateAcls { rules: rules.to_vec() }
    }

    #[test]
    fn a_rule_is_there_once_and_only_changes_count() {
        let mut state = ControllerState::default();
        let (a, b) = (rule("ann", "a"), rule("ann", "b"));
        assert_eq!(state.apply(create(&[a.clone(), a.clone()])), CommandOutcome::Acls(vec![a.clone()]));
        let revision = state.access.revision;
        assert_eq!(state.apply(create(std::slice::from_ref(&a))), CommandOutcome::Acls(vec![]));
        assert_eq!(state.access.revision, revision);
        assert_eq!(state.apply(create(&[a, b.clone()])), CommandOutcome::Acls(vec![b]));
        assert!(state.access.revision > revision);
    }

    #[test]
    fn deleting_removes_what_any_filter_matches_and_returns_it() {
        let mut state = ControllerState::default();
        state.apply(create(&[rule("ann", "a"), rule("ann", "b"), rule("bob", "a"), rule("eve", "c")]));
        let filters = vec![
            AclFilter { principal: Some("bob".into()), ..AclFilter::default() },
            AclFilter { name: Some("b".into()), ..AclFilter::default() },
        ];
        let gone = state.apply(ControllerCommand::DeleteAcls { filters });
        assert_eq!(gone, CommandOutcome::Acls(vec![rule("ann", "b"), rule("bob", "a")]));
        assert_eq!(state.access.rules.len(), 2);
        let nothing = ControllerCommand::DeleteAcls { filters: vec![] };
        assert_eq!(state.apply(nothing), CommandOutcome::Acls(vec![]), "no filter means nothing");
    }

    #[test]
    fn rules_are_bounded_in_number_and_bytes_and_a_refusal_changes_nothing() {
        let mut state = ControllerState::default();
        let many: Vec<AclRule> = (0..RULES_MAX).map(|number| rule("ann", &number.to_string())).collect();
        state.apply(create(&many));
        let before = state.clone();
        let refused = Refusal::TooManyRules { rules: RULES_MAX + 1, limit: RULES_MAX };
        assert_eq!(state.apply(create(&[rule("ann", "one-more")])), CommandOutcome::Refused(refused));
        assert_eq!(state, before);
        let mut state = ControllerState::default();
        let large: Vec<AclRule> = (0..2100).map(|number| rule(&"x".repeat(2000), &number.to_string())).collect();
        assert!(matches!(state.apply(create(&large)), CommandOutcome::Refused(Refusal::RulesTooLarge { .. })));
        assert!(state.access.rules.is_empty());
    }

    #[test]
    fn a_principals_quota_comes_before_the_default() {
        let mut state = ControllerState::default();
        assert!(state.access.quota("ann").is_unlimited());
        let quota = |bytes_in| Quota { bytes_in, ..Quota::default() };
        let set = |principal: Option<&str>, quota| ControllerCommand::SetQuota {
            principal: principal.map(str::to_owned),
            quota,
        };
        state.apply(set(None, Some(quota(5))));
        state.apply(set(Some("ann"), Some(quota(9))));
        assert_eq!((state.access.quota("ann"), state.access.quota("bob")), (quota(9), quota(5)));
        state.apply(set(Some("ann"), None));
        assert_eq!(state.access.quota("ann"), quota(5));
    }

    #[test]
    fn a_state_from_before_there_were_rules_has_none() {
        let mut json = serde_json::to_value(ControllerState::default()).unwrap();
        json.as_object_mut().unwrap().remove("access");
        let read: ControllerState = serde_json::from_value(json).unwrap();
        assert_eq!(read.access, super::super::AccessRules::default());
    }
}
