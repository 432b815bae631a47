//! Data directories that are not what they were: rolled back to an older copy, restored on purpose, swapped between two nodes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::Load;
use chronicle_tests::node::{PATIENCE, output, program};
use chronicle_tests::replica;

const TOPIC: &str = "rolled-back";
/// The node whose directory goes back.
const VICTIM: usize = 1;
const REASON: &str = "the cluster refuses this node: its data directory was rolled back";

/// A copy of a data directory, in a folder that is deleted with it.
struct Snapshot(tempfile::TempDir);

impl Snapshot {
    fn of(cluster: &Cluster, number: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        copy(cluster.node(number).data_dir(), dir.path())?;
        Ok(Self(dir))
    }

    /// Replaces the data directory of a node that does not run.
    fn restore(&self, cluster: &mut Cluster, number: usize) -> Result<()> {
        cluster.node_mut(number).wipe()?;
        copy(self.0.path(), cluster.node(number).data_dir())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Appends records until so many are acknowledged; returns how many were.
async fn append(cluster: &Cluster, records: u64) -> Result<usize> {
    let servers: Vec<String> =
        cluster.running().into_iter().map(|number| cluster.node(number).address().to_string()).collect();
    let writing = Load::new(TOPIC).start(&servers.join(","))?;
    writing.progress(records, PATIENCE).await?;
    let history = writing.stop().await?;
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    Ok(history.acknowledged())
}

/// Waits until all replicas have caught up, stops every node, and reads each replica from its disk: all hold the same records, and
/// at least as many as were acknowledged.
async fn nothing_is_lost(mut cluster: Cluster, acknowledged: usize) -> Result<()> {
    cluster.caught_up(TOPIC).await?;
    let (log, replicas) = (cluster.log_id(TOPIC, 0).await?, cluster.replicas(TOPIC, 0).await?);
    for number in cluster.running() {
        cluster.terminate(number)?;
    }
    let read = |number: &usize| replica::read(cluster.node(*number).data_dir(), log);
    let stored = replicas.iter().map(read).collect::<Result<Vec<_>>>()?;
    ensure!(stored.iter().all(|records| *records == stored[0]), "replicas hold different records");
    ensure!(stored[0].len() >= acknowledged, "{} records of {acknowledged} acknowledged", stored[0].len());
    cluster.finish()
}

/// Starts a node that must end by itself; returns what it printed.
fn ends(cluster: &mut Cluster, number: usize) -> Result<String> {
    cluster.node_mut(number).launch()?;
    let (status, log) = tokio::task::block_in_place(|| cluster.node_mut(number).wait_ended())?;
    ensure!(!status.success(), "node-{number} ended with {status}:\n{log}");
    Ok(log)
}

/// Starts a node whose directory was rolled back: it ends with the reason and what to do.
fn is_refused(cluster: &mut Cluster, number: usize) -> Result<()> {
    let log = ends(cluster, number)?;
    ensure!(log.contains(REASON) && log.contains("restore.md"), "it ended for another reason:\n{log}");
    Ok(())
}

async fn three() -> Result<Cluster> {
    let cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    Ok(cluster)
}

/// Starts a node with an empty directory: a new node of the same name, once the cluster takes the old one for dead.
async fn starts_empty(cluster: &mut Cluster, number: usize) -> Result<()> {
    let mut tries = 0;
    loop {
        cluster.node_mut(number).wipe()?;
        match cluster.restart(number) {
            Ok(()) => break,
            Err(error) if tries == 5 || !format!("{error:#}").contains("is alive") => return Err(error),
            Err(_) => tries += 1,
        }
        cluster.kill(number);
    }
    cluster.settled().await?;
    cluster
        .eventually("three replicas", async |cluster| {
            let replicas = cluster.replicas(TOPIC, 0).await?;
            ensure!(replicas.contains(&number) && replicas.len() == 3, "replicas on {replicas:?}");
            Ok(())
        })
        .await?;
    cluster.caught_up(TOPIC).await
}

/// The other two serve; with an empty directory the node returns, and nothing is missing.
async fn others_serve_and_it_returns_with_an_empty_directory(
    mut cluster: Cluster,
    number: usize,
    acknowledged: usize,
) -> Result<()> {
    let acknowledged = acknowledged + append(&cluster, 50).await?;
    starts_empty(&mut cluster, number).await?;
    nothing_is_lost(cluster, acknowledged).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_restored_from_a_copy_of_a_stopped_node_is_refused() -> Result<()> {
    let mut cluster = three().await?;
    let mut acknowledged = append(&cluster, 50).await?;
    cluster.terminate(VICTIM)?;
    let snapshot = Snapshot::of(&cluster, VICTIM)?;
    cluster.restart(VICTIM)?;
    acknowledged += append(&cluster, 50).await?;
    cluster.caught_up(TOPIC).await?;
    cluster.terminate(VICTIM)?;
    snapshot.restore(&mut cluster, VICTIM)?;
    // However often it starts.
    for _ in 0..4 {
        is_refused(&mut cluster, VICTIM)?;
    }
    others_serve_and_it_returns_with_an_empty_directory(cluster, VICTIM, acknowledged).await
}

/// Between the snapshot and its return the node has not started again: what it raises while it runs tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_restored_from_a_snapshot_of_the_running_node_is_refused() -> Result<()> {
    let mut cluster = three().await?;
    let mut acknowledged = append(&cluster, 50).await?;
    cluster.node(VICTIM).pause()?;
    let snapshot = Snapshot::of(&cluster, VICTIM)?;
    cluster.node(VICTIM).resume()?;
    cluster.settled().await?;
    acknowledged += append(&cluster, 50).await?;
    cluster.caught_up(TOPIC).await?;
    cluster.terminate(VICTIM)?;
    snapshot.restore(&mut cluster, VICTIM)?;
    is_refused(&mut cluster, VICTIM)?;
    others_serve_and_it_returns_with_an_empty_directory(cluster, VICTIM, acknowledged).await
}

/// The rolled-back replica and one that was behind would be a majority, and both lack what was acknowledged. The one that was behind
/// has restarted since it last heard from the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_node_gives_no_majority_to_one_that_was_behind() -> Result<()> {
    let mut cluster = three().await?;
    let mut acknowledged = append(&cluster, 50).await?;
    cluster.terminate(VICTIM)?;
    let snapshot = Snapshot::of(&cluster, VICTIM)?;
    cluster.restart(VICTIM)?;
    cluster.settled().await?;
    cluster.terminate(2)?;
    // Acknowledged by node-0 and the victim.
    acknowledged += append(&cluster, 100).await?;
    cluster.terminate(VICTIM)?;
    cluster.terminate(0)?;
    snapshot.restore(&mut cluster, VICTIM)?;
    cluster.node_mut(2).launch()?;
    is_refused(&mut cluster, VICTIM)?;
    cluster.restart(0)?;
    cluster.settled().await?;
    others_serve_and_it_returns_with_an_empty_directory(cluster, VICTIM, acknowledged).await
}

/// A node whose directory is as it was left is taken in, whatever has been restarted and whoever is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_restart_without_one_machine_elects() -> Result<()> {
    let mut cluster = three().await?;
    let mut acknowledged = append(&cluster, 50).await?;
    for _ in 0..2 {
        cluster.kill_all();
        for number in [0, 2] {
            cluster.node_mut(number).launch()?;
        }
        cluster.wait_ready(&[0, 2])?;
        acknowledged += append(&cluster, 50).await?;
    }
    cluster.restart(VICTIM)?;
    cluster.settled().await?;
    acknowledged += append(&cluster, 50).await?;
    nothing_is_lost(cluster, acknowledged).await
}

fn debug(command: &str, data: &Path, more: &[&str]) -> Result<(bool, String)> {
    let mut program = program()?;
    program.args(["debug", command, "--data"]).arg(data).args(more);
    let output = tokio::task::block_in_place(|| output(program))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

/// All nodes go back, to snapshots of different moments: they start once a person has said so for each of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_restored_from_snapshots_starts_once_that_is_accepted() -> Result<()> {
    let mut cluster = three().await?;
    append(&cluster, 50).await?;
    let mut snapshots = Vec::new();
    for number in 0..3 {
        cluster.terminate(number)?;
        snapshots.push(Snapshot::of(&cluster, number)?);
        cluster.restart(number)?;
        cluster.settled().await?;
        append(&cluster, 20).await?;
    }
    let (success, text) = debug("accept-restored", cluster.node(0).data_dir(), &["--yes"])?;
    ensure!(!success && text.contains("in use"), "a running node: {text}");
    for number in 0..3 {
        cluster.terminate(number)?;
    }
    for (number, snapshot) in snapshots.iter().enumerate() {
        snapshot.restore(&mut cluster, number)?;
    }
    // The last snapshot remembers node-0 as it was after the first one.
    cluster.node_mut(2).launch()?;
    is_refused(&mut cluster, 0)?;
    cluster.kill(2);
    for number in 0..3 {
        let (success, text) = debug("accept-restored", cluster.node(number).data_dir(), &["--yes"])?;
        ensure!(success && text.contains(&format!("node-{number}")), "{text}");
    }
    // The newest snapshot and one other first: only the node with the newest one can win.
    cluster.node_mut(2).launch()?;
    cluster.node_mut(0).launch()?;
    cluster.wait_ready(&[0, 2])?;
    append(&cluster, 20).await?;
    cluster.start_all()?;
    cluster.settled().await?;
    append(&cluster, 50).await?;
    cluster.caught_up(TOPIC).await?;
    // From here on a rollback is noticed again.
    cluster.terminate(0)?;
    snapshots[0].restore(&mut cluster, 0)?;
    is_refused(&mut cluster, 0)?;
    others_serve_and_it_returns_with_an_empty_directory(cluster, 0, 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_directories_are_refused_and_a_node_is_renamed_only_on_purpose() -> Result<()> {
    let mut cluster = three().await?;
    let mut acknowledged = append(&cluster, 50).await?;
    let dirs: Vec<PathBuf> = [0, 1].iter().map(|number| cluster.node(*number).data_dir().to_owned()).collect();
    let swap = || -> Result<()> {
        let aside = dirs[0].with_extension("aside");
        fs::rename(&dirs[0], &aside)?;
        fs::rename(&dirs[1], &dirs[0])?;
        Ok(fs::rename(&aside, &dirs[1])?)
    };
    cluster.terminate(0)?;
    cluster.terminate(1)?;
    swap()?;
    for (number, other) in [(0, 1), (1, 0)] {
        let log = ends(&mut cluster, number)?;
        let names = log.contains(&format!("node-{number}")) && log.contains(&format!("node-{other}"));
        ensure!(names && log.contains("rename-node"), "it ended for another reason:\n{log}");
    }
    swap()?;
    cluster.start_all()?;
    cluster.settled().await?;
    let members = cluster.status(2).await?.servers;
    ensure!(members.len() == 3, "{members:?}");
    for number in 0..3 {
        let address = cluster.node(number).address().to_string();
        let own: Vec<_> = members.iter().filter(|server| server.name == format!("node-{number}")).collect();
        ensure!(own.len() == 1 && own[0].address == address, "node-{number}: {members:?}");
    }

    cluster.terminate(1)?;
    let (success, text) = debug("rename-node", &dirs[1], &["--name", "renamed", "--yes"])?;
    ensure!(success && text.contains("node-1") && text.contains("renamed"), "{text}");
    let renamed = cluster.encrypt(cluster.node(1).setup().set("node.name", "renamed"), "renamed")?;
    cluster.replace_setup(1, renamed)?;
    cluster.restart(1)?;
    cluster.settled().await?;
    cluster
        .eventually("the new name", async |cluster| {
            let servers = cluster.status(0).await?.servers;
            let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
            ensure!(names.len() == 3 && names.contains(&"renamed") && !names.contains(&"node-1"), "{names:?}");
            Ok(())
        })
        .await?;
    acknowledged += append(&cluster, 50).await?;
    nothing_is_lost(cluster, acknowledged).await
}

/// The folder of a replica's log is gone, and the journal remembers it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_folder_is_gone_is_filled() -> Result<()> {
    let mut cluster = three().await?;
    let mut acknowledged = append(&cluster, 200).await?;
    cluster.caught_up(TOPIC).await?;
    let log = cluster.log_id(TOPIC, 0).await?;
    for kill in [false, true] {
        if kill {
            cluster.kill(VICTIM)
        } else {
            cluster.terminate(VICTIM)?
        }
        fs::remove_dir_all(cluster.node(VICTIM).data_dir().join("logs").join(log.to_string()))?;
        cluster.restart(VICTIM)?;
        acknowledged += append(&cluster, 50).await?;
        cluster.caught_up(TOPIC).await?;
    }
    acknowledged += append(&cluster, 50).await?;
    nothing_is_lost(cluster, acknowledged).await
}

/// As above, of a replica that was not there when the partition was created, and of one that is being filled.
#[tokio::test(flavor = "multi_thread")]
async fn a_moved_replica_whose_folder_is_gone_or_cut_while_it_fills_is_filled() -> Result<()> {
    let mut cluster = three().await?;
    let mut acknowledged = append(&cluster, 300).await?;
    // A new node of the same name takes the place of the old one.
    cluster.terminate(VICTIM)?;
    starts_empty(&mut cluster, VICTIM).await?;
    let log = cluster.log_id(TOPIC, 0).await?;
    let folder = |cluster: &Cluster| cluster.node(VICTIM).data_dir().join("logs").join(log.to_string());
    for marked in [None, Some(1), Some(2)] {
        for remove in [true, false] {
            cluster.terminate(VICTIM)?;
            if let Some(reason) = marked {
                note_fill(cluster.node(VICTIM).data_dir(), log, reason)?;
            }
            if remove {
                fs::remove_dir_all(folder(&cluster))?;
            } else {
                // Opening the log finds that its end is missing.
                let segments = replica::segments(cluster.node(VICTIM).data_dir(), log)?;
                let newest = segments.last().context("a segment")?;
                let file = fs::OpenOptions::new().write(true).open(newest)?;
                file.set_len(file.metadata()?.len() / 2)?;
            }
            cluster.restart(VICTIM)?;
            acknowledged += append(&cluster, 20).await?;
            cluster
                .caught_up(TOPIC)
                .await
                .with_context(|| format!("fill mark {marked:?}, folder removed: {remove}"))?;
        }
    }
    acknowledged += append(&cluster, 50).await?;
    nothing_is_lost(cluster, acknowledged).await
}

/// Notes in the journal of a stopped node that a log must be filled: 1 behind, 2 damaged.
fn note_fill(data_dir: &Path, log: chronicle_log::LogId, reason: u8) -> Result<()> {
    use chronicle_log::disk::RealDisk;
    use chronicle_log::{Store, StoreConfig};
    const KEY_FILL: u8 = 3;
    let store = Store::open(std::sync::Arc::new(RealDisk), data_dir, StoreConfig::default())?;
    let (sent, done) = std::sync::mpsc::channel();
    store.journal_put(log, KEY_FILL, vec![reason].into(), Some(Box::new(move |result| drop(sent.send(result)))))?;
    done.recv()??;
    Ok(store.close()?)
}
