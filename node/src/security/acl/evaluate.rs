//! Index over all rules: built when the rules change, then only read.
//!
//! Rules are grouped by principal, then by kind. A check reads the rules of the principal and those for every client
//! (`*`), in each three places: the literal name, the literal `*`, and the prefixes of the name. Prefixes are sorted.
//! Each prefix stores its parent, which is the longest other prefix that it begins with, and the combined rights of
//! itself and all its parents. So one binary search, for the longest prefix of the name, finds the rights of all
//! prefixes of the name.
//!
//! Invariant: the result is the same as that of checking all rules one by one (property test in `tests.rs`).

use std::collections::HashMap;

use super::acl_rules::{AclRule, Action, EVERY_NAME, Effect, PatternKind, ResourceKind};
use crate::identity::ANYONE;

/// The combined decision of all rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A rule allows it and none denies it.
    Allow,
    /// A rule denies it.
    Deny,
    /// No rule matches: denied, unless something else allows it.
    Unmentioned,
}

/// The rights that rules give or deny for one pattern: one bit per action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Rights {
    allow: u16,
    deny: u16,
}

impl Rights {
    fn add(&mut self, action: Action, effect: Effect) {
        let mut bits = match action {
            Action::All => Action::ALL.iter().fold(0, |bits, action| bits | bit(*action)),
            action => bit(action),
        };
        match effect {
            Effect::Allow => {
                if action.implies_describe() {
                    bits |= bit(Action::Describe);
                }
                self.allow |= bits;
            }
            Effect::Deny => self.deny |= bits,
        }
    }

    fn and(self, other: Self) -> Self {
        Self { allow: self.allow | other.allow, deny: self.deny | other.deny }
    }

    fn decide(self, action: Action) -> Decision {
        match (self.deny & bit(action) != 0, self.allow & bit(action) != 0) {
            (true, _) => Decision::Deny,
            (false, true) => Decision::Allow,
            (false, false) => Decision::Unmentioned,
        }
    }
}

fn bit(action: Action) -> u16 {
    1 << action as u16
}

/// A prefix in the sorted list.
#[derive(Debug)]
struct Prefix {
    text: String,
    /// Index of the longest other prefix that this one begins with.
    parent: Option<usize>,
    /// Combined rights of this prefix and of all prefixes that it begins with.
    rights: Rights,
}

/// The rules of one principal for one kind.
#[derive(Debug, Default)]
struct Patterns {
    every: Rights,
    literal: HashMap<String, Rights>,
    /// Sorted by text, each once, when linked.
    prefixes: Vec<Prefix>,
}

impl Patterns {
    fn add(&mut self, rule: &AclRule) {
        let rights = match rule.pattern {
            PatternKind::Literal if rule.name == EVERY_NAME => &mut self.every,
            PatternKind::Literal => self.literal.entry(rule.name.clone()).or_default(),
            PatternKind::Prefix => {
                self.prefixes.push(Prefix { text: rule.name.clone(), parent: None, rights: Rights::default() });
                &mut self.prefixes.last_mut().expect("inserted above").rights
            }
        };
        rights.add(rule.action, rule.effect);
    }

    /// Makes one prefix of each text and links it to its parent. Parents sort before their children, so one walk is enough.
    fn link(&mut self) {
        self.prefixes.sort_by(|a, b| a.text.cmp(&b.text));
        self.prefixes.dedup_by(|same, first| {
            let equal = same.text == first.text;
            if equal {
                first.rights = first.rights.and(same.rights);
            }
            equal
        });
        let mut chain: Vec<usize> = Vec::new();
        for at in 0..self.prefixes.len() {
            while let Some(&last) = chain.last()
                && !self.prefixes[at].text.starts_with(&self.prefixes[last].text)
            {
                chain.pop();
            }
            let parent = chain.last().copied();
            self.prefixes[at].parent = parent;
            if let Some(parent) = parent {
                self.prefixes[at].rights = self.prefixes[at].rights.and(self.prefixes[parent].rights);
            }
            chain.push(at);
        }
    }

    /// Returns the combined rights of every prefix that a name begins with.
    fn of_prefixes(&self, name: &str) -> Rights {
        // Every text that sorts between a prefix of the name and the name itself begins with that prefix. So the last
        // entry that does not sort after the name is a prefix of the name, or has all prefixes of the name among its
        // parents.
        let behind = self.prefixes.partition_point(|prefix| prefix.text.as_str() <= name);
        let mut at = behind.checked_sub(1);
        while let Some(index) = at {
            let prefix = &self.prefixes[index];
            if name.starts_with(&prefix.text) {
                return prefix.rights;
            }
            at = prefix.parent;
        }
        Rights::default()
    }

    fn of(&self, name: &str) -> Rights {
        let literal = self.literal.get(name).copied().unwrap_or_default();
        self.every.and(literal).and(self.of_prefixes(name))
    }

    /// Returns the names and prefixes (`true`) that an allowing rule exists for; `*` is the empty prefix.
    fn allowed(&self, action: Action) -> impl Iterator<Item = (&str, bool)> {
        let has = move |rights: &Rights| rights.allow & bit(action) != 0;
        let every = has(&self.every).then_some(("", true));
        let literal =
            self.literal.iter().filter(move |(_, rights)| has(rights)).map(|(name, _)| (name.as_str(), false));
        let prefixes = self.prefixes.iter().filter(move |prefix| has(&prefix.rights));
        every.into_iter().chain(literal).chain(prefixes.map(|prefix| (prefix.text.as_str(), true)))
    }
}

/// The rules of one principal, by kind.
#[derive(Debug, Default)]
struct PrincipalPatterns([Patterns; ResourceKind::ALL.len()]);

impl PrincipalPatterns {
    fn about(&self, kind: ResourceKind) -> &Patterns {
        &self.0[kind as usize]
    }
}

/// Evaluates a set of rules. Immutable: changed rules need a new evaluator.
#[derive(Debug, Default)]
pub struct Evaluator {
    subjects: HashMap<String, PrincipalPatterns>,
    anyone: PrincipalPatterns,
}

impl Evaluator {
    /// Builds the index over rules. Takes time linear in their number, and n log n in the number of prefixes.
    pub fn new<'a>(rules: impl IntoIterator<Item = &'a AclRule>) -> Self {
        let mut evaluator = Self::default();
        for rule in rules {
            let subject = match rule.principal.as_str() {
                ANYONE => &mut evaluator.anyone,
                principal => match evaluator.subjects.contains_key(principal) {
                    true => evaluator.subjects.get_mut(principal).expect("found above"),
                    false => evaluator.subjects.entry(principal.to_owned()).or_default(),
                },
            };
            subject.0[rule.kind as usize].add(rule);
        }
        for subject in evaluator.subjects.values_mut().chain([&mut evaluator.anyone]) {
            subject.0.iter_mut().for_each(Patterns::link);
        }
        evaluator
    }

    /// Whether a principal may do this: a rule allows it and no rule denies it.
    pub fn allows(&self, principal: &str, kind: ResourceKind, name: &str, action: Action) -> bool {
        self.decide(principal, kind, name, action) == Decision::Allow
    }

    /// As [`Evaluator::allows`], but distinguishes a denying rule from no matching rule.
    pub fn decide(&self, principal: &str, kind: ResourceKind, name: &str, action: Action) -> Decision {
        let anyone = self.anyone.about(kind).of(name);
        let rights = match self.subjects.get(principal) {
            Some(subject) => anyone.and(subject.about(kind).of(name)),
            None => anyone,
        };
        rights.decide(action)
    }

    /// Whether a resource of this kind may exist that a principal may do this to: a rule allows it for a pattern that
    /// no denying rule covers completely.
    pub fn allows_some(&self, principal: &str, kind: ResourceKind, action: Action) -> bool {
        let subject = self.subjects.get(principal).map(|subject| subject.about(kind));
        let anyone = self.anyone.about(kind);
        let denied = |name: &str, prefix: bool| {
            [Some(anyone), subject].into_iter().flatten().any(|patterns| {
                // A literal deny excludes one name from an allowed prefix, never all of it.
                let rights = match prefix {
                    true => patterns.every.and(patterns.of_prefixes(name)),
                    false => patterns.of(name),
                };
                rights.deny & bit(action) != 0
            })
        };
        let mut allowed = [Some(anyone), subject].into_iter().flatten().flat_map(|patterns| patterns.allowed(action));
        allowed.any(|(name, prefix)| !denied(name, prefix))
    }

    /// Whether a principal may do anything at all.
    pub fn knows(&self, principal: &str) -> bool {
        ResourceKind::ALL.iter().any(|kind| {
            Action::ALL
                .iter()
                .filter(|action| **action != Action::All)
                .any(|action| self.allows_some(principal, *kind, *action))
        })
    }
}
