//! `chronicle acl`: adds, removes and lists access rules.

use chronicle_client::{Client, v1};
use chronicle_node::security::{Action, Effect, PatternKind, ResourceKind, acl};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use super::output::{Table, print};

#[derive(Debug, Subcommand)]
pub(super) enum AclCommand {
    /// Add one rule per operation.
    Add(AddArgs),
    /// Remove the rules that match every given option.
    Remove(RemoveArgs),
    /// List the rules that match every given option.
    List(FilterArgs),
}

/// The resource of a rule: one of these.
#[derive(Debug, Args, Default)]
#[group(multiple = false)]
pub(super) struct ResourceArgs {
    /// A topic; "*" for every topic; a name that ends in * for every topic with that prefix.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// A consumer group; "*" as for topics.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// The cluster.
    #[arg(long)]
    cluster: bool,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Principal of the client certificate, such as spiffe://prod/ns/shop/sa/orders; "*" for every client.
    #[arg(long, value_name = "NAME")]
    principal: String,
    #[command(flatten)]
    resource: ResourceArgs,
    /// Operations: read, write, create, delete, alter, describe, admin, all; several separated by commas.
    #[arg(long, short = 'p', value_name = "NAME", value_delimiter = ',', required = true, value_parser = action)]
    operation: Vec<Action>,
    /// Deny the operations; overrides every allowing rule.
    #[arg(long)]
    deny: bool,
}

#[derive(Debug, Args, Default)]
pub(super) struct FilterArgs {
    /// Only rules of exactly this principal; "*": rules for every client.
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    #[command(flatten)]
    resource: ResourceArgs,
    /// Only rules of exactly this operation.
    #[arg(long, short = 'p', value_name = "NAME", value_parser = action)]
    operation: Option<Action>,
    /// Only rules that deny.
    #[arg(long, conflicts_with = "allow")]
    deny: bool,
    /// Only rules that allow.
    #[arg(long)]
    allow: bool,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Remove every rule of the cluster; needed when no other option is given.
    #[arg(long)]
    all: bool,
}

fn action(text: &str) -> Result<Action, String> {
    let found = Action::ALL.iter().copied().find(|action| action.as_str() == text);
    found.ok_or_else(|| {
        let known: Vec<&str> = Action::ALL.iter().map(|action| action.as_str()).collect();
        format!("must be one of {}", known.join(", "))
    })
}

fn operation_of(action: Action) -> v1::AclOperation {
    match action {
        Action::Read => v1::AclOperation::Read,
        Action::Write => v1::AclOperation::Write,
        Action::Create => v1::AclOperation::Create,
        Action::Delete => v1::AclOperation::Delete,
        Action::Alter => v1::AclOperation::Alter,
        Action::Describe => v1::AclOperation::Describe,
        Action::Admin => v1::AclOperation::Admin,
        Action::All => v1::AclOperation::All,
    }
}

impl ResourceArgs {
    /// Returns kind, pattern and name; `None` when no resource was given.
    fn resolve(self) -> Option<(v1::ResourceKind, v1::PatternKind, String)> {
        let (kind, name) = match self {
            Self { topic: Some(name), .. } => (v1::ResourceKind::Topic, name),
            Self { group: Some(name), .. } => (v1::ResourceKind::Group, name),
            Self { cluster: true, .. } => (v1::ResourceKind::Cluster, acl::CLUSTER.to_owned()),
            _ => return None,
        };
        Some(match name.strip_suffix('*') {
            Some(prefix) if !prefix.is_empty() => (kind, v1::PatternKind::Prefix, prefix.to_owned()),
            _ => (kind, v1::PatternKind::Literal, name),
        })
    }
}

impl FilterArgs {
    fn resolve(self) -> v1::AclFilter {
        let mut filter = v1::AclFilter {
            principal: self.principal,
            operation: self.operation.map_or(v1::AclOperation::Unspecified, operation_of).into(),
            ..v1::AclFilter::default()
        };
        if let Some((kind, pattern, name)) = self.resource.resolve() {
            (filter.resource, filter.pattern, filter.name) = (kind.into(), pattern.into(), Some(name));
        }
        filter.effect = match (self.allow, self.deny) {
            (true, _) => v1::AclEffect::Allow.into(),
            (_, true) => v1::AclEffect::Deny.into(),
            _ => v1::AclEffect::Unspecified.into(),
        };
        filter
    }
}

pub(super) async fn run(global: &Global, command: AclCommand) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        AclCommand::Add(args) => add(global, &client, args).await,
        AclCommand::Remove(args) => {
            let filter = args.filter.resolve();
            let everything = filter == v1::AclFilter::default();
            anyhow::ensure!(
                args.all || !everything,
                "which rules to remove: must be given as a principal, a resource or another filter, or --all"
            );
            anyhow::ensure!(!args.all || everything, "--all: removes every rule: must be given alone");
            show(global, client.delete_acls(vec![filter]).await?)
        }
        AclCommand::List(args) => show(global, client.list_acls(args.resolve()).await?),
    }
}

async fn add(global: &Global, client: &Client, args: AddArgs) -> anyhow::Result<()> {
    let AddArgs { principal, resource, operation, deny } = args;
    let resource = resource.resolve();
    let (kind, pattern, name) =
        resource.ok_or_else(|| anyhow::anyhow!("resource: missing: must be given as --topic, --group or --cluster"))?;
    let effect = if deny { v1::AclEffect::Deny } else { v1::AclEffect::Allow };
    let rule = |action: Action| v1::Acl {
        principal: principal.clone(),
        resource: kind.into(),
        pattern: pattern.into(),
        name: name.clone(),
        operation: operation_of(action).into(),
        effect: effect.into(),
    };
    show(global, client.create_acls(operation.into_iter().map(rule).collect()).await?)
}

#[derive(Debug, Serialize)]
struct RuleOutput {
    principal: String,
    effect: &'static str,
    operation: &'static str,
    resource: &'static str,
    pattern: &'static str,
    name: String,
}

/// Shown for a value that only newer versions define.
const UNKNOWN: &str = "unknown";

impl From<v1::Acl> for RuleOutput {
    fn from(rule: v1::Acl) -> Self {
        Self {
            effect: match rule.effect() {
                v1::AclEffect::Allow => Effect::Allow.as_str(),
                v1::AclEffect::Deny => Effect::Deny.as_str(),
                v1::AclEffect::Unspecified => UNKNOWN,
            },
            operation: match rule.operation() {
                v1::AclOperation::Unspecified => UNKNOWN,
                operation => Action::ALL
                    .iter()
                    .find(|action| operation_of(**action) == operation)
                    .map_or(UNKNOWN, |action| action.as_str()),
            },
            resource: match rule.resource() {
                v1::ResourceKind::Cluster => ResourceKind::Cluster.as_str(),
                v1::ResourceKind::Topic => ResourceKind::Topic.as_str(),
                v1::ResourceKind::Group => ResourceKind::Group.as_str(),
                v1::ResourceKind::Unspecified => UNKNOWN,
            },
            pattern: match rule.pattern() {
                v1::PatternKind::Literal => PatternKind::Literal.as_str(),
                v1::PatternKind::Prefix => PatternKind::Prefix.as_str(),
                v1::PatternKind::Unspecified => UNKNOWN,
            },
            principal: rule.principal,
            name: rule.name,
        }
    }
}

fn show(global: &Global, rules: Vec<v1::Acl>) -> anyhow::Result<()> {
    let views: Vec<RuleOutput> = rules.into_iter().map(RuleOutput::from).collect();
    print(global.output, &views, || {
        let mut table = Table::new(&["PRINCIPAL", "EFFECT", "OPERATION", "RESOURCE", "PATTERN", "NAME"]);
        for view in &views {
            let RuleOutput { principal, effect, operation, resource, pattern, name } = view;
            let words = [*effect, *operation, *resource, *pattern].map(str::to_owned);
            table.row([principal.clone()].into_iter().chain(words).chain([name.clone()]).collect());
        }
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> ResourceArgs {
        ResourceArgs { topic: Some(name.into()), ..ResourceArgs::default() }
    }

    #[test]
    fn a_star_at_the_end_is_a_prefix_and_alone_every_name() {
        let resolved = |name: &str| topic(name).resolve().map(|(_, pattern, name)| (pattern, name)).unwrap();
        assert_eq!(resolved("orders"), (v1::PatternKind::Literal, "orders".into()));
        assert_eq!(resolved("orders*"), (v1::PatternKind::Prefix, "orders".into()));
        assert_eq!(resolved("*"), (v1::PatternKind::Literal, "*".into()));
        assert_eq!(ResourceArgs::default().resolve(), None);
    }

    #[test]
    fn every_operation_has_a_name_on_the_command_line_and_on_the_wire() {
        for action in Action::ALL {
            assert_eq!(super::action(action.as_str()), Ok(*action));
            let rule = v1::Acl { operation: operation_of(*action).into(), ..v1::Acl::default() };
            assert_eq!(RuleOutput::from(rule).operation, action.as_str());
        }
        assert!(super::action("reed").unwrap_err().contains("read, write"));
    }

    #[test]
    fn a_filter_says_only_what_was_given() {
        assert_eq!(FilterArgs::default().resolve(), v1::AclFilter::default());
        let filter = FilterArgs { resource: topic("a*"), deny: true, ..FilterArgs::default() }.resolve();
        assert_eq!((filter.name.as_deref(), filter.effect()), (Some("a"), v1::AclEffect::Deny));
        assert_eq!((filter.principal.as_deref(), filter.operation()), (None, v1::AclOperation::Unspecified));
    }
}
