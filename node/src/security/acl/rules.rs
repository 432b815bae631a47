//! Rules: principal × resource × action, allowed or denied.
//!
//! The model is Kafka's (KIP-11, prefixed patterns of KIP-290) without hosts: a deny wins over every allow, what nobody
//! allows is refused, and some actions imply that the resource may be described. Rules are stored in the controller's state as
//! they are here: a variant or field once written stays readable.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::is_topic_name;

/// The literal name that stands for every resource of its kind.
pub const EVERY_NAME: &str = "*";
/// The name of the one resource of kind cluster.
pub const CLUSTER: &str = "cluster";
/// Longest principal, in bytes.
pub const PRINCIPAL_BYTES_MAX: usize = 2048;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceKind {
    /// The cluster as a whole: its nodes, its rules and quotas, topics that are not there yet.
    Cluster,
    /// Topics, by name.
    Topic,
    /// Consumer groups, by name.
    Group,
}

/// How the name of a rule is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatternKind {
    /// The resource of this name; `*`: every one.
    Literal,
    /// Every resource whose name begins with it.
    Prefix,
}

/// What is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Read records; be a member of a group and commit its offsets.
    Read,
    /// Append records.
    Write,
    /// Create the topic (kind topic), or any topic (kind cluster).
    Create,
    /// Delete it.
    Delete,
    /// Change settings, offsets of a group, rules and quotas (kind cluster).
    Alter,
    /// Know that it is there, and what it is like.
    Describe,
    /// Operate the cluster: nodes, leadership, verification.
    Admin,
    /// Every action.
    All,
}

/// Whether a rule gives or takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It may be done, unless another rule denies it.
    Allow,
    /// It may not be done, whatever other rules allow.
    Deny,
}

macro_rules! words {
    ($type:ident: $($name:ident = $text:literal),* $(,)?) => {
        impl $type {
            /// Every value.
            pub const ALL: &[$type] = &[$($type::$name),*];

            /// The text form, in configuration, audit lines and labels.
            pub fn as_str(self) -> &'static str {
                match self { $($type::$name => $text),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(ResourceKind: Cluster = "cluster", Topic = "topic", Group = "group");
words!(PatternKind: Literal = "literal", Prefix = "prefix");
words!(Action: Read = "read", Write = "write", Create = "create", Delete = "delete", Alter = "alter",
    Describe = "describe", Admin = "admin", All = "all");
words!(Effect: Allow = "allow", Deny = "deny");

impl ResourceKind {
    /// The actions that a rule about this kind can name.
    pub fn actions(self) -> &'static [Action] {
        match self {
            Self::Cluster => &[Action::Create, Action::Alter, Action::Describe, Action::Admin, Action::All],
            Self::Topic => &[
                Action::Read,
                Action::Write,
                Action::Create,
                Action::Delete,
                Action::Alter,
                Action::Describe,
                Action::All,
            ],
            Self::Group => &[Action::Read, Action::Delete, Action::Alter, Action::Describe, Action::All],
        }
    }
}

impl Action {
    /// Who may do this may describe the resource, too.
    pub fn implies_describe(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Delete | Self::Alter | Self::Admin | Self::All)
    }
}

/// One rule. Two rules that are equal are the same rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AclRule {
    /// Exactly this principal; `*`: anyone.
    pub principal: String,
    /// What kind of thing it is about.
    pub kind: ResourceKind,
    /// How `name` is compared.
    pub pattern: PatternKind,
    /// Name, or the beginning of names. For kind cluster `cluster`.
    pub name: String,
    /// What may be done, or not.
    pub action: Action,
    /// Which of the two.
    pub effect: Effect,
}

/// A rule that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value}: {rule}")]
pub struct InvalidRule {
    /// The field.
    pub field: &'static str,
    /// Its value, shortened.
    pub value: String,
    /// What it must be.
    pub rule: String,
}

impl InvalidRule {
    fn new(field: &'static str, value: &str, rule: impl Into<String>) -> Self {
        let shown: String = value.chars().take(64).collect();
        Self { field, value: format!("{shown:?}"), rule: rule.into() }
    }
}

impl AclRule {
    /// Checks everything that the types cannot say.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn validate(&self) -> Result<(), InvalidRule> {
        check_principal(&self.principal)?;
        let Self { kind, pattern, name, action, .. } = self;
        match (kind, pattern) {
            (ResourceKind::Cluster, PatternKind::Literal) if name == CLUSTER => {}
            (ResourceKind::Cluster, _) => {
                let rule = format!("the resource of kind cluster is the literal {CLUSTER:?}");
                return Err(InvalidRule::new("name", name, rule));
            }
            (_, PatternKind::Literal) if name == EVERY_NAME || is_topic_name(name) => {}
            // What no name begins with is a mistake; a single dot or two begin names without being one.
            (_, PatternKind::Prefix) if is_topic_name(name) || matches!(name.as_str(), "." | "..") => {}
            (_, PatternKind::Literal) => {
                let rule = "must be * or 1 to 249 characters of a-z A-Z 0-9 . _ -, not . or ..";
                return Err(InvalidRule::new("name", name, rule));
            }
            (_, PatternKind::Prefix) => {
                let rule = "a prefix has 1 to 249 characters of a-z A-Z 0-9 . _ -; for every name use the literal *";
                return Err(InvalidRule::new("name", name, rule));
            }
        }
        if !kind.actions().contains(action) {
            let named: Vec<&str> = kind.actions().iter().map(|action| action.as_str()).collect();
            let rule = format!("a rule about a {kind} names one of {}", named.join(", "));
            return Err(InvalidRule::new("action", action.as_str(), rule));
        }
        Ok(())
    }
}

/// Checks the name of a principal, `*` included.
///
/// # Errors
/// When it is empty, too long, or has characters that would lie in a log.
pub(crate) fn check_principal(principal: &str) -> Result<(), InvalidRule> {
    if principal.is_empty() || principal.len() > PRINCIPAL_BYTES_MAX {
        let rule = format!("must have 1 to {PRINCIPAL_BYTES_MAX} bytes");
        return Err(InvalidRule::new("principal", principal, rule));
    }
    if principal.chars().any(char::is_control) {
        return Err(InvalidRule::new("principal", principal, "must have no control characters"));
    }
    Ok(())
}

impl fmt::Display for AclRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { principal, kind, pattern, name, action, effect } = self;
        write!(f, "{effect} {principal:?} {action} {kind} {pattern} {name}")
    }
}

/// Which rules are meant; what is absent is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclFilter {
    /// Rules of exactly this principal (`*`: the rules for anyone).
    #[serde(default)]
    pub principal: Option<String>,
    /// Rules about this kind.
    #[serde(default)]
    pub kind: Option<ResourceKind>,
    /// Rules with this pattern.
    #[serde(default)]
    pub pattern: Option<PatternKind>,
    /// Rules with exactly this name.
    #[serde(default)]
    pub name: Option<String>,
    /// Rules about exactly this action.
    #[serde(default)]
    pub action: Option<Action>,
    /// Rules with this effect.
    #[serde(default)]
    pub effect: Option<Effect>,
}

impl AclFilter {
    /// Whether a rule is meant.
    pub fn matches(&self, rule: &AclRule) -> bool {
        fn is<T: PartialEq>(wanted: &Option<T>, value: &T) -> bool {
            wanted.as_ref().is_none_or(|wanted| wanted == value)
        }
        is(&self.principal, &rule.principal)
            && is(&self.kind, &rule.kind)
            && is(&self.pattern, &rule.pattern)
            && is(&self.name, &rule.name)
            && is(&self.action, &rule.action)
            && is(&self.effect, &rule.effect)
    }
}
