//! Damage of any file of one node of three, at random from a seed, while clients write: the node repairs itself from the others, or
//! refuses to start with a reason and is replaced. No record is lost, and the replicas end equal.
//!
//! `CHRONICLE_HARM_SEED` repeats the choices; `CHRONICLE_TEST_FACTOR` multiplies their number.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::Load;
use chronicle_tests::length;
use chronicle_tests::node::{PATIENCE, output};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

const TOPIC: &str = "harmed";
const NODES: usize = 3;
const ROUNDS: u32 = 8;

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

/// Harms one file at random; says which and how.
fn harm(dir: &Path, random: &mut StdRng) -> Result<String> {
    let all = files(dir)?;
    let path = all.get(random.random_range(0..all.len())).context("no files")?;
    let mut bytes = fs::read(path)?;
    let at = random.random_range(0..=bytes.len().saturating_sub(1));
    let how = match random.random_range(0..5) {
        0 if !bytes.is_empty() => {
            bytes[at] ^= 1 << random.random_range(0..8);
            format!("bit flipped in byte {at}")
        }
        1 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        2 => {
            let from = at / 512 * 512;
            let end = bytes.len().min(from + 512);
            bytes[from..end].fill(0);
            format!("zeroed from {from} to {end}")
        }
        3 => {
            bytes.extend_from_slice(&[0x5a; 100]);
            "100 bytes longer".to_owned()
        }
        _ => {
            fs::remove_file(path)?;
            return Ok(format!("{} removed", path.display()));
        }
    };
    fs::write(path, bytes)?;
    Ok(format!("{}: {how}", path.display()))
}

/// Compares the replicas, which reads all of each: damage that nobody has read yet is found, and repaired.
fn verify(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.program(*cluster.running().first().context("no node runs")?)?;
    command.args(["cluster", "verify", TOPIC]);
    let output = tokio::task::block_in_place(|| output(command))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && !out.contains("DIFFERENT"), "verify: {err}{out}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_file_of_one_node_is_damaged_the_cluster_repairs_or_replaces_it_and_loses_nothing() -> Result<()> {
    let seed = match std::env::var("CHRONICLE_HARM_SEED") {
        Ok(seed) => seed.parse().context("CHRONICLE_HARM_SEED: must be a number")?,
        Err(_) => rand::rng().next_u64(),
    };
    println!("CHRONICLE_HARM_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let rounds = ROUNDS * u32::try_from(length(Duration::from_secs(1)).as_secs())?;
    let mut cluster = Cluster::of(NODES).start().await?;
    cluster.create_topic(TOPIC, 2, 3, None).await?;
    let load = Load { partitions: 2, writers: 2, pace: Duration::from_millis(10), ..Load::new(TOPIC) };
    let writing = load.start(&cluster.servers())?;
    writing.progress(100, PATIENCE).await?;
    let mut done = Vec::new();
    for round in 0..rounds {
        let node = random.random_range(0..NODES);
        let stopped = if random.random_bool(0.5) {
            cluster.terminate(node)?;
            "stopped"
        } else {
            cluster.kill(node);
            "killed"
        };
        let how = harm(cluster.node(node).data_dir(), &mut random)?;
        let what = format!("seed {seed}, round {round}: node-{node} {stopped}, {how}");
        println!("{what}");
        done.push(what.clone());
        writing.progress(20, PATIENCE).await.context(what.clone())?;
        if let Err(refused) = cluster.restart(node) {
            let text = format!("{refused:#}");
            if !text.contains("the node ended with") || text.contains("panicked") {
                bail!("{what}: {text}");
            }
            // As for a lost disk.
            cluster.node_mut(node).kill();
            cluster.node_mut(node).wipe()?;
            cluster.restart(node).context(what.clone())?;
        }
        writing.progress(20, PATIENCE).await.context(what.clone())?;
        cluster.settled().await.context(what.clone())?;
        cluster.keeps_up(TOPIC).await.context(what.clone())?;
        cluster.eventually("replicas that are the same", async |cluster| verify(cluster)).await.context(what)?;
    }
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "{done:?}: the client did not hide {:?}", history.errors());
    cluster.check_disks(TOPIC, &history).await.with_context(|| format!("{done:?}"))?;
    cluster.finish()
}
