#![expect(clippy::disallowed_methods, reason = "prints real time")]

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::identity::ANYONE;

fn rule(
    principal: &str,
    kind: ResourceKind,
    pattern: PatternKind,
    name: &str,
    action: Action,
    effect: Effect,
) -> AclRule {
    AclRule { principal: principal.into(), kind, pattern, name: name.into(), action, effect }
}

fn topic(principal: &str, pattern: PatternKind, name: &str, action: Action, effect: Effect) -> AclRule {
    rule(principal, ResourceKind::Topic, pattern, name, action, effect)
}

/// The reference implementation: goes through all rules one by one.
fn naive(rules: &[AclRule], principal: &str, kind: ResourceKind, name: &str, action: Action) -> bool {
    let applies = |rule: &&AclRule| {
        (rule.principal == ANYONE || rule.principal == principal)
            && rule.kind == kind
            && match rule.pattern {
                PatternKind::Literal => rule.name == EVERY_NAME || rule.name == name,
                PatternKind::Prefix => name.starts_with(&rule.name),
            }
    };
    let about = |rule: &AclRule| rule.action == action || rule.action == Action::All;
    let denied = rules.iter().filter(applies).any(|rule| rule.effect == Effect::Deny && about(rule));
    let implied = |rule: &AclRule| action == Action::Describe && rule.action.implies_describe();
    let allowed =
        rules.iter().filter(applies).any(|rule| rule.effect == Effect::Allow && (about(rule) || implied(rule)));
    allowed && !denied
}

fn any_rule() -> impl Strategy<Value = AclRule> {
    let principal = prop_oneof![Just("*"), Just("ann"), Just("bob")];
    let names = prop_oneof![4 => "[ab]{1,4}", 1 => Just("*".to_owned())];
    (
        principal,
        proptest::sample::select(ResourceKind::ALL),
        proptest::sample::select(PatternKind::ALL),
        names,
        proptest::sample::select(Action::ALL),
        prop_oneof![3 => Just(Effect::Allow), 1 => Just(Effect::Deny)],
    )
        .prop_map(|(principal, kind, pattern, name, action, effect)| {
            let name = if pattern == PatternKind::Prefix { name.replace('*', "a") } else { name };
            rule(principal, kind, pattern, &name, action, effect)
        })
}

/// Every name of one to five letters of a two-letter alphabet: enough to distinguish all patterns of up to four
/// letters.
fn names() -> Vec<String> {
    let mut names = vec![String::new()];
    let mut from = 0;
    for _ in 0..5 {
        let to = names.len();
        for at in from..to {
            for letter in ['a', 'b'] {
                names.push(format!("{}{letter}", names[at]));
            }
        }
        from = to;
    }
    names.split_off(1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_index_answers_as_all_rules_one_by_one(
        rules in proptest::collection::vec(any_rule(), 0..24),
        name in "[ab]{1,6}",
    ) {
        let evaluator = Evaluator::new(&rules);
        for principal in ["ann", "bob", "eve"] {
            for kind in ResourceKind::ALL {
                for action in Action::ALL.iter().filter(|action| **action != Action::All) {
                    prop_assert_eq!(
                        evaluator.allows(principal, *kind, &name, *action),
                        naive(&rules, principal, *kind, &name, *action),
                        "{} {} {} {}", principal, kind, &name, action
                    );
                }
            }
        }
    }

    #[test]
    fn something_is_allowed_whenever_some_name_is(rules in proptest::collection::vec(any_rule(), 0..8)) {
        let evaluator = Evaluator::new(&rules);
        for action in [Action::Write, Action::Describe] {
            let some = names().iter().any(|name| naive(&rules, "ann", ResourceKind::Topic, name, action));
            // The reverse does not hold: literal rules can deny all names under a prefix one by one.
            if some {
                prop_assert!(evaluator.allows_some("ann", ResourceKind::Topic, action));
                prop_assert!(evaluator.knows("ann"));
            }
        }
    }
}

#[test]
fn no_principal_may_do_anything_without_a_rule() {
    let evaluator = Evaluator::new([]);
    assert!(!evaluator.allows("ann", ResourceKind::Topic, "t", Action::Read));
    assert!(!evaluator.knows("ann"));
}

#[test]
fn a_deny_wins_over_every_allow() {
    let allow = topic("ann", PatternKind::Literal, "t", Action::All, Effect::Allow);
    for deny in [
        topic("*", PatternKind::Literal, "*", Action::Read, Effect::Deny),
        topic("ann", PatternKind::Prefix, "t", Action::All, Effect::Deny),
        topic("ann", PatternKind::Literal, "t", Action::Read, Effect::Deny),
    ] {
        let evaluator = Evaluator::new([&allow, &deny]);
        assert!(!evaluator.allows("ann", ResourceKind::Topic, "t", Action::Read), "{deny}");
    }
}

#[test]
fn what_may_be_read_may_be_described_and_a_denied_read_may_still_be() {
    let read = topic("ann", PatternKind::Literal, "t", Action::Read, Effect::Allow);
    let evaluator = Evaluator::new([&read]);
    assert!(evaluator.allows("ann", ResourceKind::Topic, "t", Action::Describe));
    assert!(!evaluator.allows("ann", ResourceKind::Topic, "t", Action::Write));
    let write = topic("ann", PatternKind::Literal, "t", Action::Write, Effect::Allow);
    let denied = topic("ann", PatternKind::Literal, "t", Action::Read, Effect::Deny);
    let evaluator = Evaluator::new([&read, &write, &denied]);
    assert!(evaluator.allows("ann", ResourceKind::Topic, "t", Action::Describe));
    assert!(!evaluator.allows("ann", ResourceKind::Topic, "t", Action::Read));
    let create = topic("ann", PatternKind::Literal, "t", Action::Create, Effect::Allow);
    assert!(!Evaluator::new([&create]).allows("ann", ResourceKind::Topic, "t", Action::Describe));
}

#[test]
fn a_pattern_that_is_denied_as_a_whole_allows_nothing() {
    let allow = topic("ann", PatternKind::Prefix, "ab", Action::Write, Effect::Allow);
    let some = |deny: &AclRule| Evaluator::new([&allow, deny]).allows_some("ann", ResourceKind::Topic, Action::Write);
    assert!(!some(&topic("*", PatternKind::Prefix, "a", Action::Write, Effect::Deny)));
    assert!(!some(&topic("ann", PatternKind::Literal, "*", Action::All, Effect::Deny)));
    assert!(some(&topic("ann", PatternKind::Prefix, "abc", Action::Write, Effect::Deny)));
    assert!(some(&topic("ann", PatternKind::Literal, "ab", Action::Write, Effect::Deny)));
}

#[test]
fn rules_that_cannot_be_are_refused_by_field() {
    let good = topic("ann", PatternKind::Literal, "t", Action::Read, Effect::Allow);
    assert_eq!(good.validate(), Ok(()));
    let field = |rule: AclRule| rule.validate().unwrap_err().field;
    assert_eq!(field(AclRule { principal: String::new(), ..good.clone() }), "principal");
    assert_eq!(field(AclRule { principal: "a\nb".into(), ..good.clone() }), "principal");
    assert_eq!(field(AclRule { principal: "x".repeat(PRINCIPAL_BYTES_MAX + 1), ..good.clone() }), "principal");
    assert_eq!(field(AclRule { name: "a b".into(), ..good.clone() }), "name");
    assert_eq!(field(AclRule { name: "*".into(), pattern: PatternKind::Prefix, ..good.clone() }), "name");
    assert_eq!(field(AclRule { name: String::new(), pattern: PatternKind::Prefix, ..good.clone() }), "name");
    assert_eq!(field(AclRule { action: Action::Admin, ..good.clone() }), "action");
    assert_eq!(field(AclRule { kind: ResourceKind::Group, action: Action::Write, ..good.clone() }), "action");
    assert_eq!(field(AclRule { kind: ResourceKind::Cluster, ..good.clone() }), "name");
    let cluster = rule("ann", ResourceKind::Cluster, PatternKind::Literal, CLUSTER, Action::Admin, Effect::Allow);
    assert_eq!(cluster.validate(), Ok(()));
}

#[test]
fn a_filter_looks_only_at_what_it_names() {
    let read = topic("ann", PatternKind::Literal, "t", Action::Read, Effect::Allow);
    assert!(AclFilter::default().matches(&read));
    assert!(AclFilter { principal: Some("ann".into()), name: Some("t".into()), ..AclFilter::default() }.matches(&read));
    assert!(!AclFilter { principal: Some("bob".into()), ..AclFilter::default() }.matches(&read));
    assert!(!AclFilter { action: Some(Action::All), ..AclFilter::default() }.matches(&read));
}

/// Prints what a check costs with ten thousand rules; asserts nothing about time.
#[test]
fn a_check_among_ten_thousand_rules_is_right_and_its_time_is_printed() {
    let mut rules = Vec::new();
    for tenant in 0..100 {
        let principal = format!("spiffe://cluster.local/ns/tenant-{tenant}/sa/app");
        for number in 0..50 {
            let name = format!("tenant-{tenant}.orders-{number}");
            rules.push(topic(&principal, PatternKind::Literal, &name, Action::Write, Effect::Allow));
            let prefix = format!("tenant-{tenant}.views-{number}.");
            rules.push(topic(&principal, PatternKind::Prefix, &prefix, Action::Read, Effect::Allow));
        }
    }
    assert_eq!(rules.len(), 10_000);
    let built = Instant::now();
    let evaluator = Evaluator::new(&rules);
    println!("index over {} rules: {:?}", rules.len(), built.elapsed());
    let principal = "spiffe://cluster.local/ns/tenant-42/sa/app";
    for (what, name, action, expected) in [
        ("literal", "tenant-42.orders-7", Action::Write, true),
        ("prefix", "tenant-42.views-7.daily", Action::Read, true),
        ("nothing", "tenant-43.orders-7", Action::Write, false),
    ] {
        let rounds = 10_000u32;
        let began = Instant::now();
        let mut allowed = 0;
        for _ in 0..rounds {
            let name = std::hint::black_box(name);
            allowed += u32::from(evaluator.allows(principal, ResourceKind::Topic, name, action));
        }
        println!("{what}: {:?} a check", began.elapsed() / rounds);
        assert_eq!(allowed, if expected { rounds } else { 0 });
    }
}
