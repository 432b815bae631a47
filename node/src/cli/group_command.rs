//! `chronicle group`: lists, describes, resets and deletes consumer groups.

use chronicle_client::v1::reset_offsets_request::To;
use chronicle_client::{Client, Position, v1};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use super::output::{Table, print};
use super::parse;

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// List the consumer groups known to the node.
    List,
    /// Show members, assignment, offsets and lag of a group.
    Describe(GroupNameArgs),
    /// Set the offsets of a group that has no members.
    Reset(ResetArgs),
    /// Delete a group that has no members, with its offsets.
    Delete(GroupNameArgs),
}

#[derive(Debug, Args)]
pub(super) struct GroupNameArgs {
    /// Name of the group.
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct ResetArgs {
    /// Name of the group.
    name: String,
    /// Topic to reset.
    topic: String,
    /// Only this partition (0-based); repeat for several.
    #[arg(long, short = 'p', value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Vec<i32>,
    /// New position: earliest, latest, an offset, @MILLISECONDS or a time such as 2026-11-21T10:00:00Z.
    #[arg(long, value_name = "POSITION", value_parser = parse::position)]
    to: Position,
    /// Show the new offsets without setting them.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(global: &Global, command: GroupCommand) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        GroupCommand::List => list(global, &client).await,
        GroupCommand::Describe(args) => describe(global, &client, &args.name).await,
        GroupCommand::Reset(args) => reset(global, &client, args).await,
        GroupCommand::Delete(args) => delete(global, &client, args.name).await,
    }
}

#[derive(Debug, Serialize)]
struct SummaryOutput {
    group: String,
    state: String,
    members: u32,
}

async fn list(global: &Global, client: &Client) -> anyhow::Result<()> {
    let view = |one: v1::GroupSummary| SummaryOutput { group: one.group, state: one.state, members: one.members };
    let views: Vec<SummaryOutput> = client.list_groups().await?.into_iter().map(view).collect();
    print(global.output, &views, || {
        let mut table = Table::new(&["GROUP", "STATE", "MEMBERS"]);
        for view in &views {
            table.row(vec![view.group.clone(), view.state.clone(), view.members.to_string()]);
        }
        table
    })
}

#[derive(Debug, Serialize)]
struct GroupDescriptionOutput {
    group: String,
    state: String,
    generation: i32,
    coordinator: String,
    members: Vec<MemberOutput>,
    partitions: Vec<LagOutput>,
}

#[derive(Debug, Serialize)]
struct MemberOutput {
    member_id: String,
    client_name: String,
    topics: Vec<String>,
}

/// An absent value is unknown, or no offset was committed.
#[derive(Debug, Serialize)]
struct LagOutput {
    topic: String,
    partition: i32,
    offset: Option<i64>,
    end: Option<i64>,
    lag_records: Option<i64>,
    lag_ms: Option<i64>,
    member_id: Option<String>,
}

impl From<v1::GroupLag> for LagOutput {
    fn from(lag: v1::GroupLag) -> Self {
        let known = |value: i64| (value >= 0).then_some(value);
        Self {
            topic: lag.topic,
            partition: lag.partition,
            offset: known(lag.offset),
            end: known(lag.end),
            lag_records: known(lag.lag_records),
            lag_ms: known(lag.lag_ms),
            member_id: (!lag.member_id.is_empty()).then_some(lag.member_id),
        }
    }
}

async fn describe(global: &Global, client: &Client, name: &str) -> anyhow::Result<()> {
    let found = client.describe_group(name).await?;
    let member = |member: v1::GroupMember| MemberOutput {
        member_id: member.member_id,
        client_name: member.client_name,
        topics: member.topics,
    };
    let view = GroupDescriptionOutput {
        group: found.group,
        state: found.state,
        generation: found.generation,
        coordinator: found.coordinator,
        members: found.members.into_iter().map(member).collect(),
        partitions: found.partitions.into_iter().map(LagOutput::from).collect(),
    };
    print(global.output, &view, || lag_table(&view))?;
    if global.output == super::output::Format::Table {
        eprintln!(
            "group {} is {}, generation {}, {} members, coordinator {}",
            view.group,
            view.state,
            view.generation,
            view.members.len(),
            view.coordinator
        );
    }
    Ok(())
}

fn lag_table(view: &GroupDescriptionOutput) -> Table {
    let number = |value: Option<i64>| value.map_or("-".to_owned(), |value| value.to_string());
    let name = |id: &String| {
        let member = view.members.iter().find(|member| member.member_id == *id);
        member.map(|member| member.client_name.clone()).unwrap_or_default()
    };
    let mut table = Table::new(&["TOPIC", "PARTITION", "OFFSET", "END", "LAG", "LAG MS", "CLIENT", "MEMBER"]);
    for lag in &view.partitions {
        table.row(vec![
            lag.topic.clone(),
            lag.partition.to_string(),
            number(lag.offset),
            number(lag.end),
            number(lag.lag_records),
            number(lag.lag_ms),
            lag.member_id.as_ref().map(name).unwrap_or_default(),
            lag.member_id.clone().unwrap_or("-".to_owned()),
        ]);
    }
    table
}

#[derive(Debug, Serialize)]
struct OffsetOutput {
    topic: String,
    partition: i32,
    offset: i64,
}

async fn reset(global: &Global, client: &Client, args: ResetArgs) -> anyhow::Result<()> {
    let to = match args.to {
        Position::Offset(offset) => To::Offset(offset),
        Position::Timestamp(time) => To::TimestampMs(time),
        Position::Earliest => To::Earliest(true),
        Position::Latest => To::Latest(true),
    };
    let request = v1::ResetOffsetsRequest {
        group: args.name,
        topic: args.topic,
        partitions: args.partition,
        dry_run: args.dry_run,
        to: Some(to),
    };
    let view = |one: v1::GroupOffset| OffsetOutput { topic: one.topic, partition: one.partition, offset: one.offset };
    let views: Vec<OffsetOutput> = client.reset_group_offsets(request).await?.into_iter().map(view).collect();
    print(global.output, &views, || {
        let mut table = Table::new(&["TOPIC", "PARTITION", "OFFSET"]);
        for view in &views {
            table.row(vec![view.topic.clone(), view.partition.to_string(), view.offset.to_string()]);
        }
        table
    })?;
    if args.dry_run {
        eprintln!("--dry-run: no offset was set");
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct DeletedGroupOutput {
    group: String,
    deleted: bool,
}

async fn delete(global: &Global, client: &Client, name: String) -> anyhow::Result<()> {
    client.delete_group(&name).await?;
    let view = DeletedGroupOutput { group: name, deleted: true };
    print(global.output, &view, || Table::pairs(vec![("Deleted", view.group.clone())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_absent() {
        let lag =
            v1::GroupLag { topic: "t".into(), offset: -1, end: 7, lag_records: -1, lag_ms: -1, ..Default::default() };
        let view = LagOutput::from(lag);
        assert_eq!((view.offset, view.end, view.lag_records, view.member_id), (None, Some(7), None, None));
    }
}
