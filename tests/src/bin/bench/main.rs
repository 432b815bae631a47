//! `make bench`: measures the disk and, in the same run on the same volume, the engine and a node, and prints how they
//! compare and which of the project's speed and memory targets hold. `make bench-cluster` does the same for three nodes.
//!
//! Other processes may use the machine. So compared figures are measured in alternating rounds, their medians are
//! compared, and the spread of every figure is printed beside it. Build with `--release`.

mod cluster;
mod disk;
mod engine;
mod grpc;
mod idle;
mod load;
mod open;
mod probe;
mod report;
mod traces;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use report::Report;

/// Measures disk, engine and node in one run.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Fewer and smaller rounds: a few minutes at most.
    #[arg(long)]
    quick: bool,
    /// What to measure when no parts are named.
    #[arg(long, value_enum, default_value_t)]
    suite: Suite,
    /// Where to measure: a folder on the volume in question; the benchmark deletes what it writes there.
    #[arg(long, default_value = "data/bench")]
    data: PathBuf,
    /// Measure only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Form of the result on standard output; progress goes to standard error.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Internal: append to a log in this folder until killed.
    #[arg(long, hide = true)]
    append_until_killed: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Suite {
    /// Disk, engine and one node.
    #[default]
    Node,
    /// Three nodes.
    Cluster,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Durable appends of one log, and reading it.
    Append,
    /// One small append to each of 1,000 partitions.
    Partitions,
    /// Producers over gRPC on loopback.
    Grpc,
    /// A node with traces of which none is sampled, and one without.
    Traces,
    /// 1,000 partitions without clients.
    Idle,
    /// Opening a large log, closed cleanly and killed.
    Open,
    /// Three nodes: how long writes wait when the leader is killed, and when it transfers leadership.
    Failover,
    /// Three nodes compared with one.
    Replicas,
    /// Three nodes: partitions without clients, and thousands of them.
    IdleCluster,
    /// Three nodes: from their start to the first write.
    Restart,
    /// Three nodes: catch-up of an empty node.
    Catchup,
    /// Three nodes: ten minutes of full load.
    Soak,
}

/// Measures one part.
type Measure = fn(&Bench, &mut Report) -> Result<()>;

/// What a part needs to know.
struct Bench<'a> {
    /// An existing folder on the measured volume.
    dir: &'a Path,
    quick: bool,
}

impl Bench<'_> {
    /// Chooses between a full and a quick run's size.
    fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Alternating rounds of everything that is compared.
    fn rounds(&self) -> usize {
        self.size(24, 6)
    }

    /// A fresh folder of this name.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(dir) = &arguments.append_until_killed {
        return open::append_until_killed(dir);
    }
    ensure!(!cfg!(debug_assertions), "built without optimisation: run `make bench`");
    std::fs::create_dir_all(&arguments.data).with_context(|| format!("creating {}", arguments.data.display()))?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(std::fs::canonicalize(&arguments.data)?)?;
    let context = Bench { dir: scratch.path(), quick: arguments.quick };
    let mut report = Report::new(probe::machine(scratch.path())?);
    let parts: [(Suite, Part, Measure); 12] = [
        (Suite::Node, Part::Append, engine::append),
        (Suite::Node, Part::Partitions, engine::partitions),
        (Suite::Node, Part::Grpc, grpc::run),
        (Suite::Node, Part::Traces, traces::run),
        (Suite::Node, Part::Idle, idle::run),
        (Suite::Node, Part::Open, open::run),
        (Suite::Cluster, Part::Failover, cluster::failover),
        (Suite::Cluster, Part::Replicas, cluster::replicas),
        (Suite::Cluster, Part::IdleCluster, cluster::idle),
        (Suite::Cluster, Part::Restart, cluster::restart),
        (Suite::Cluster, Part::Catchup, cluster::catchup),
        (Suite::Cluster, Part::Soak, cluster::soak),
    ];
    for (suite, part, run) in parts {
        let named = arguments.only.contains(&part);
        if named || (arguments.only.is_empty() && arguments.suite == suite) {
            eprintln!("measuring {part:?} ...");
            run(&context, &mut report).with_context(|| format!("measuring {part:?}"))?;
        }
    }
    match arguments.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}
