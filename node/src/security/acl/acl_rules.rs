//! Rules: principal × resource × action, allowed or denied.
//!
//! The model is Kafka's (KIP-11, prefixed patterns of KIP-290) without hosts: a deny overrides every allow, what no
//! rule allows is denied, and some actions imply that the resource may be described. The controller's state stores
//! these types: a variant or field, once written, must stay readable.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::is_topic_name;

/// The literal name that stands for every resource of its kind.
pub const EVERY_NAME: &str = "*";
/// The name of the one resource of kind cluster.
pub const CLUSTER: &str = "cluster";
/// Longest principal, in bytes.
pub const PRINCIPAL_BYTES_MAX: usize = 2048;

/// The kind of resource that a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceKind {
    /// The cluster as a whole: its nodes, its rules and quotas, topics that do not exist yet.
    Cluster,
    /// Topics, by name.
    Topic,
    /// Consumer groups, by name.
    Group,
}

/// How the name of a rule is matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatternKind {
    /// The resource of this name; `*`: every resource of the kind.
    Literal,
    /// Every resource whose name begins with this text.
    Prefix,
}

/// An operation on a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Read records; be a member of a group and commit its offsets.
    Read,
    /// Append records.
    Write,
    /// Create the topic (kind topic), or any topic (kind cluster).
    Create,
    /// Delete the resource.
    Delete,
    /// Change settings, offsets of a group, or rules and quotas (kind cluster).
    Alter,
    /// Read that the resource exists, and its settings and state.
    Describe,
    /// Operate the cluster: nodes, leadership, verification.
    Admin,
    /// Every action.
    All,
}

/// Whether a rule allows or denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Allows the action, unless another rule denies it.
    Allow,
    /// Denies the action, whatever other rules allow.
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
    /// Returns the actions that a rule for this kind can have.
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
    /// Whether permission for this action includes permission to describe the resource.
    pub fn implies_describe(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Delete | Self::Alter | Self::Admin | Self::All)
    }
}

/// One rule. Two rules that are equal are the same rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AclRule {
    /// Exactly this principal; `*`: every client.
    pub principal: String,
    /// Kind of the resource.
    pub kind: ResourceKind,
    /// How `name` is matched.
    pub pattern: PatternKind,
    /// Name, or prefix of names. For kind cluster: `cluster`.
    pub name: String,
    /// The action that it allows or denies.
    pub action: Action,
    /// Whether it allows or denies.
    pub effect: Effect,
}

/// A rule that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value}: {rule}")]
pub struct InvalidRule {
    /// The field.
    pub field: &'static str,
    /// Its value, shortened.
    pub value: String,
    /// The rule that it breaks.
    pub rule: String,
}

impl InvalidRule {
    fn new(field: &'static str, value: &str, rule: impl Into<String>) -> Self {
        let shown: String = value.chars().take(64).collect();
        Self { field, value: format!("{shown:?}"), rule: rule.into() }
    }
}

impl AclRule {
    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn validate(&self) -> Result<(), InvalidRule> {
        check_principal(&self.principal)?;
        let Self { kind, pattern, name, action, .. } = self;
        match (kind, pattern) {
            (ResourceKind::Cluster, PatternKind::Literal) if name == CLUSTER => {}
            (ResourceKind::Cluster, _) => {
                let rule = format!("must be the literal {CLUSTER:?} for kind cluster");
                return Err(InvalidRule::new("name", name, rule));
            }
            (_, PatternKind::Literal) if name == EVERY_NAME || is_topic_name(name) => {}
            // A prefix that no name can begin with is a mistake. `.` and `..` are not names, but names may begin with
            // them.
            (_, PatternKind::Prefix) if is_topic_name(name) || matches!(name.as_str(), "." | "..") => {}
            (_, PatternKind::Literal) => {
                let rule = "must be * or 1 to 249 characters of a-z A-Z 0-9 . _ -, not . or ..";
                return Err(InvalidRule::new("name", name, rule));
            }
            (_, PatternKind::Prefix) => {
                let rule =
                    "must be 1 to 249 characters of a-z A-Z 0-9 . _ - as a prefix; for every name use the literal *";
                return Err(InvalidRule::new("name", name, rule));
            }
        }
        if !kind.actions().contains(action) {
            let named: Vec<&str> = kind.actions().iter().map(|action| action.as_str()).collect();
            let rule = format!("must be one of {} for kind {kind}", named.join(", "));
            return Err(InvalidRule::new("action", action.as_str(), rule));
        }
        Ok(())
    }
}

/// Checks the name of a principal, `*` included.
///
/// # Errors
/// When it is empty, too long, or contains control characters, which could forge log lines.
pub(crate) fn check_principal(principal: &str) -> Result<(), InvalidRule> {
    if principal.is_empty() || principal.len() > PRINCIPAL_BYTES_MAX {
        let rule = format!("must have 1 to {PRINCIPAL_BYTES_MAX} bytes");
        return Err(InvalidRule::new("principal", principal, rule));
    }
    if principal.chars().any(char::is_control) {
        return Err(InvalidRule::new("principal", principal, "must not contain control characters"));
    }
    Ok(())
}

impl fmt::Display for AclRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { principal, kind, pattern, name, action, effect } = self;
        write!(f, "{effect} {principal:?} {action} {kind} {pattern} {name}")
    }
}

/// Selects rules; an absent field matches every rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclFilter {
    /// Rules of exactly this principal (`*`: the rules for every client).
    #[serde(default)]
    pub principal: Option<String>,
    /// Rules for this kind.
    #[serde(default)]
    pub kind: Option<ResourceKind>,
    /// Rules with this pattern.
    #[serde(default)]
    pub pattern: Option<PatternKind>,
    /// Rules with exactly this name.
    #[serde(default)]
    pub name: Option<String>,
    /// Rules for exactly this action.
    #[serde(default)]
    pub action: Option<Action>,
    /// Rules with this effect.
    #[serde(default)]
    pub effect: Option<Effect>,
}

impl AclFilter {
    /// Whether a rule matches.
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
