//! `chronicle topic`: create, list, describe, alter, delete.

use chronicle_client::{Client, v1};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::Global;
use super::cluster::ServerNames;
use super::output::{Table, human_bytes, print};
use super::parse;
use super::time::format_rfc3339;

#[derive(Debug, Subcommand)]
pub(super) enum TopicCommand {
    /// Create a topic.
    Create(CreateArgs),
    /// List all topics.
    List,
    /// Show a topic's settings and its partitions.
    Describe(TopicNameArgs),
    /// Change settings or grow the number of partitions.
    Alter(AlterArgs),
    /// Delete a topic and its data.
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(super) struct TopicNameArgs {
    /// Name of the topic.
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Name: 1 to 249 of a-z A-Z 0-9 . _ -
    name: String,
    /// Number of partitions.
    #[arg(long, short = 'p', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Replicas of each partition; 0: the default of the cluster.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=100))]
    replication_factor: i32,
    /// Succeed without a change when the topic exists already.
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Args)]
pub(super) struct AlterArgs {
    /// Name of the topic.
    name: String,
    /// New number of partitions; cannot be reduced.
    #[arg(long, short = 'p', value_name = "N", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: Option<i32>,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// Name of the topic.
    name: String,
    /// Succeed when the topic does not exist.
    #[arg(long)]
    if_exists: bool,
}

#[derive(Debug, Args)]
struct SettingsArgs {
    /// Size beyond which a partition's oldest segments are deleted, such as 10GiB, or unlimited.
    #[arg(long, value_name = "BYTES", value_parser = parse::retention_bytes, allow_hyphen_values = true)]
    retention_size: Option<i64>,
    /// Age of a segment's newest record beyond which it is deleted, such as 7d, or forever.
    #[arg(long, value_name = "TIME", value_parser = parse::retention_ms, allow_hyphen_values = true)]
    retention: Option<i64>,
    /// Size at which a new segment is started.
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes)]
    segment_size: Option<i64>,
    /// Largest stored batch of one request.
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes_i32)]
    max_message_size: Option<i32>,
    /// When an append is acknowledged: fsync (on disk on a majority) or memory (flushed within the flush interval).
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    /// With durability memory: longest time between flushes, in milliseconds.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(i32).range(1..))]
    flush_interval_ms: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Durability {
    Fsync,
    Memory,
}

impl From<&SettingsArgs> for v1::TopicSettings {
    fn from(args: &SettingsArgs) -> Self {
        Self {
            retention_bytes: args.retention_size,
            retention_ms: args.retention,
            segment_bytes: args.segment_size,
            max_message_bytes: args.max_message_size,
            durability: args.durability.map(|durability| match durability {
                Durability::Fsync => v1::Durability::Fsync.into(),
                Durability::Memory => v1::Durability::Memory.into(),
            }),
            flush_interval_ms: args.flush_interval_ms,
        }
    }
}

/// A topic as printed.
#[derive(Debug, Serialize)]
struct TopicOutput {
    name: String,
    id: String,
    partitions: i32,
    replication_factor: i32,
    settings: SettingsOutput,
    created: String,
    created_ms: i64,
}

#[derive(Debug, Serialize)]
struct SettingsOutput {
    retention_bytes: i64,
    retention_ms: i64,
    segment_bytes: i64,
    max_message_bytes: i32,
    durability: &'static str,
    flush_interval_ms: i32,
}

impl From<v1::Topic> for TopicOutput {
    fn from(topic: v1::Topic) -> Self {
        let settings = topic.settings.unwrap_or_default();
        let durability = match settings.durability() {
            v1::Durability::Memory => "memory",
            v1::Durability::Fsync | v1::Durability::Unspecified => "fsync",
        };
        Self {
            name: topic.name,
            id: topic.id,
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            settings: SettingsOutput {
                retention_bytes: settings.retention_bytes.unwrap_or(-1),
                retention_ms: settings.retention_ms.unwrap_or(-1),
                segment_bytes: settings.segment_bytes.unwrap_or_default(),
                max_message_bytes: settings.max_message_bytes.unwrap_or_default(),
                durability,
                flush_interval_ms: settings.flush_interval_ms.unwrap_or_default(),
            },
            created: format_rfc3339(topic.created_ms),
            created_ms: topic.created_ms,
        }
    }
}

impl TopicOutput {
    fn durability(&self) -> String {
        match self.settings.durability {
            "memory" => format!("memory, flushed every {} ms", self.settings.flush_interval_ms),
            durability => durability.to_owned(),
        }
    }

    fn pairs(&self) -> Table {
        Table::pairs(vec![
            ("Name", self.name.clone()),
            ("Id", self.id.clone()),
            ("Created", self.created.clone()),
            ("Partitions", self.partitions.to_string()),
            ("Replication factor", self.replication_factor.to_string()),
            ("Durability", self.durability()),
            ("Retention", limit(self.settings.retention_ms, "forever", human_ms)),
            ("Retention size", limit(self.settings.retention_bytes, "unlimited", |bytes| human_bytes(bytes as f64))),
            ("Segment size", human_bytes(self.settings.segment_bytes as f64)),
            ("Largest batch", human_bytes(f64::from(self.settings.max_message_bytes))),
        ])
    }
}

fn limit(value: i64, none: &str, show: impl FnOnce(i64) -> String) -> String {
    if value < 0 { none.to_owned() } else { show(value) }
}

fn human_ms(ms: i64) -> String {
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms >= size && ms % size == 0 {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

#[derive(Debug, Serialize)]
struct TopicDescriptionOutput {
    #[serde(flatten)]
    topic: TopicOutput,
    partition_list: Vec<PartitionOutput>,
}

#[derive(Debug, Serialize)]
struct PartitionOutput {
    partition: i32,
    earliest: i64,
    next: i64,
    bytes: i64,
    segments: i32,
    term: i64,
    leader: String,
    state: String,
    /// UUIDs of the nodes, the preferred leader first.
    replicas: Vec<String>,
}

#[derive(Debug, Serialize)]
struct DeletedTopicOutput {
    name: String,
    deleted: bool,
}

pub(super) async fn run(global: &Global, command: TopicCommand) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        TopicCommand::Create(args) => create(global, &client, args).await,
        TopicCommand::List => list(global, &client).await,
        TopicCommand::Describe(args) => describe(global, &client, &args.name).await,
        TopicCommand::Alter(args) => alter(global, &client, args).await,
        TopicCommand::Delete(args) => delete(global, &client, args).await,
    }
}

async fn create(global: &Global, client: &Client, args: CreateArgs) -> anyhow::Result<()> {
    let request = v1::CreateTopicRequest {
        settings: Some((&args.settings).into()),
        name: args.name,
        partitions: args.partitions,
        replication_factor: args.replication_factor,
        if_not_exists: args.if_not_exists,
    };
    let answer = client.create_topic(request).await?;
    let view = TopicOutput::from(answer.topic.unwrap_or_default());
    print(global.output, &view, || view.pairs())?;
    if !answer.created {
        eprintln!("topic {}: exists already, not changed", view.name);
    }
    Ok(())
}

async fn list(global: &Global, client: &Client) -> anyhow::Result<()> {
    let views: Vec<TopicOutput> = client.list_topics().await?.into_iter().map(Into::into).collect();
    print(global.output, &views, || {
        let mut table =
            Table::new(&["NAME", "PARTITIONS", "REPLICAS", "DURABILITY", "RETENTION", "SIZE LIMIT", "CREATED"]);
        for view in &views {
            table.row(vec![
                view.name.clone(),
                view.partitions.to_string(),
                view.replication_factor.to_string(),
                view.settings.durability.to_owned(),
                limit(view.settings.retention_ms, "forever", human_ms),
                limit(view.settings.retention_bytes, "unlimited", |bytes| human_bytes(bytes as f64)),
                view.created.clone(),
            ]);
        }
        table
    })
}

async fn describe(global: &Global, client: &Client, name: &str) -> anyhow::Result<()> {
    let answer = client.describe_topic(name).await?;
    let partition_list = answer.partitions.into_iter().map(|partition| PartitionOutput {
        partition: partition.partition,
        earliest: partition.earliest,
        next: partition.next,
        bytes: partition.bytes,
        segments: partition.segments,
        term: partition.term,
        leader: partition.leader,
        state: partition.state,
        replicas: partition.replicas,
    });
    let view = TopicDescriptionOutput {
        topic: answer.topic.unwrap_or_default().into(),
        partition_list: partition_list.collect(),
    };
    if global.output == super::output::Format::Table {
        print(global.output, &(), || view.topic.pairs())?;
        let names = ServerNames::new(&client.get_servers().await?.servers);
        return print(global.output, &(), || partition_table(&view.partition_list, &names));
    }
    print(global.output, &view, Table::default)
}

fn partition_table(partitions: &[PartitionOutput], names: &ServerNames) -> Table {
    let mut table =
        Table::new(&["PARTITION", "EARLIEST", "NEXT", "BYTES", "SEGMENTS", "TERM", "LEADER", "STATE", "REPLICAS"]);
    for partition in partitions {
        table.row(vec![
            partition.partition.to_string(),
            partition.earliest.to_string(),
            partition.next.to_string(),
            partition.bytes.to_string(),
            partition.segments.to_string(),
            partition.term.to_string(),
            partition.leader.clone(),
            partition.state.clone(),
            partition.replicas.iter().map(|node| names.of(node)).collect::<Vec<_>>().join(","),
        ]);
    }
    table
}

async fn alter(global: &Global, client: &Client, args: AlterArgs) -> anyhow::Result<()> {
    let request = v1::AlterTopicRequest {
        settings: Some((&args.settings).into()),
        name: args.name,
        partitions: args.partitions.unwrap_or(0),
    };
    let view = TopicOutput::from(client.alter_topic(request).await?.topic.unwrap_or_default());
    print(global.output, &view, || view.pairs())
}

async fn delete(global: &Global, client: &Client, args: DeleteArgs) -> anyhow::Result<()> {
    let deleted = match client.delete_topic(&args.name).await {
        Ok(()) => true,
        Err(error) if args.if_exists && error.reason == "UNKNOWN_TOPIC" => false,
        Err(error) => return Err(error.into()),
    };
    let view = DeletedTopicOutput { name: args.name, deleted };
    print(global.output, &view, || {
        Table::pairs(vec![(if deleted { "Deleted" } else { "No such topic" }, view.name.clone())])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_given_are_left_out() {
        let args = SettingsArgs {
            retention_size: None,
            retention: Some(-1),
            segment_size: None,
            max_message_size: None,
            durability: Some(Durability::Memory),
            flush_interval_ms: None,
        };
        let settings = v1::TopicSettings::from(&args);
        assert_eq!(settings.retention_ms, Some(-1));
        assert_eq!(settings.durability, Some(v1::Durability::Memory as i32));
        assert_eq!((settings.retention_bytes, settings.segment_bytes), (None, None));
    }

    #[test]
    fn times_and_limits_read_well() {
        assert_eq!(limit(-1, "forever", human_ms), "forever");
        assert_eq!(limit(604_800_000, "forever", human_ms), "7d");
        assert_eq!(human_ms(90_000), "90s");
        assert_eq!(human_ms(1), "1ms");
    }
}
