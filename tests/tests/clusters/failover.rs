//! Nodes that end, hang and fill up under load: every acknowledged record is stored once, in order, on every replica, and no
//! error reaches the writers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chronicle_client::Client;
use chronicle_proto::v1;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::{Following, Load, check_read};
use chronicle_tests::node::PATIENCE;
use chronicle_tests::{length, mount, tls};

const TOPIC: &str = "load";

/// A cluster of three with a topic, writers and a reader; what happens to it; then everything is checked.
async fn under_load(
    mut cluster: Cluster,
    load: Load,
    trouble: impl AsyncFnOnce(&mut Cluster, &Progress) -> Result<()>,
) -> Result<()> {
    cluster.create_topic(TOPIC, load.partitions, 3, None).await?;
    let servers = cluster.servers();
    let following = Following::start(&servers, TOPIC, 0)?;
    let progress = Progress { writing: load.start(&servers)? };
    progress.by(100).await?;
    trouble(&mut cluster, &progress).await?;
    progress.by(100).await?;
    let history = progress.writing.stop().await?;
    println!("{} acknowledged, longest silence {:?}", history.acknowledged(), history.longest_silence());
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    let read = following.read_to(history.end(0)).await?;
    let stored = cluster.check_disks(TOPIC, &history).await?;
    check_read(&read, &stored[0])?;
    cluster.finish()
}

/// The writers, for waiting until they have got on.
struct Progress {
    writing: chronicle_tests::history::Writing,
}

impl Progress {
    async fn by(&self, records: u64) -> Result<()> {
        self.writing.progress(records, PATIENCE).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_leader_again_and_again_loses_and_doubles_nothing() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    under_load(cluster, Load::new(TOPIC), async |cluster, progress| {
        let until = Instant::now() + length(Duration::from_secs(30));
        let mut kills = 0;
        while Instant::now() < until {
            let leader = cluster.leader(TOPIC, 0).await?;
            cluster.kill(leader);
            // The others go on without it.
            progress.by(200).await?;
            cluster.restart(leader)?;
            cluster.settled().await?;
            progress.by(200).await?;
            kills += 1;
        }
        println!("{kills} leaders killed");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_any_node_do_not_disturb_a_topic_of_many_partitions() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    let load = Load { partitions: 6, writers: 6, ..Load::new(TOPIC) };
    under_load(cluster, load, async |cluster, progress| {
        for number in [0, 1, 2] {
            cluster.kill(number);
            progress.by(300).await?;
            cluster.restart(number)?;
            cluster.settled().await?;
            progress.by(300).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_is_replaced_and_harms_nothing_when_it_goes_on() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    under_load(cluster, Load::new(TOPIC), async |cluster, progress| {
        let until = Instant::now() + length(Duration::from_secs(10));
        while Instant::now() < until {
            let leader = cluster.leader(TOPIC, 0).await?;
            cluster.node(leader).pause()?;
            let others = progress.by(200).await;
            cluster.node(leader).resume()?;
            others?;
            cluster.settled().await?;
            progress.by(100).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_under_load_costs_one_election() -> Result<()> {
    const TIMES: usize = 12;
    let cluster = Cluster::of(3).start().await?;
    under_load(cluster, Load::new(TOPIC), async |cluster, progress| {
        let client = Client::connect(tls::client_config(&cluster.servers()))?;
        let before = term(cluster).await?;
        for _ in 0..TIMES {
            let to = (cluster.leader(TOPIC, 0).await? + 1) % 3;
            let request = v1::TransferLeadershipRequest { topic: TOPIC.into(), partition: 0, to: format!("node-{to}") };
            client.transfer_leadership(request).await?;
            cluster
                .eventually("the other one leads", async |cluster| {
                    ensure!(cluster.leader_as_known_to(to, TOPIC, 0).await? == to, "it does not lead yet");
                    Ok(())
                })
                .await?;
            progress.by(20).await?;
        }
        let elections = usize::try_from(term(cluster).await? - before)?;
        println!("{elections} elections for {TIMES} hand-overs");
        // The balancer gives leadership back where it belongs now and then, and a machine that stops for half a second loses
        // a leader.
        ensure!(elections <= TIMES + TIMES / 2, "{elections} elections for {TIMES} hand-overs");
        Ok(())
    })
    .await
}

/// Highest term of partition 0.
async fn term(cluster: &Cluster) -> Result<i64> {
    let mut highest = 0;
    for number in cluster.running() {
        highest = highest.max(cluster.describe(number, TOPIC).await?.partitions[0].term);
    }
    Ok(highest)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_under_load_come_back_with_everything_acknowledged() -> Result<()> {
    let cluster = Cluster::of(3).start().await?;
    under_load(cluster, Load::new(TOPIC), async |cluster, progress| {
        for _ in 0..3 {
            cluster.kill_all();
            cluster.start_all()?;
            progress.by(300).await?;
        }
        Ok(())
    })
    .await
}

/// Its own disk of 48 MiB for one of three nodes. It fills up with something else, and later is emptied again.
fn run_full(test: &str, of_the_leader: bool) -> Result<()> {
    mount::with_mounts(test, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let volumes = [mount::Volume::new(48 << 20)?, mount::Volume::new(48 << 20)?, mount::Volume::new(48 << 20)?];
            let mut setup = Cluster::of(3).set("storage.reserve-bytes", 4 << 20);
            for (number, volume) in volumes.iter().enumerate() {
                setup = setup.data_dir(number, volume.path().join("data"));
            }
            under_load(setup.start().await?, Load::new(TOPIC), async |cluster, progress| {
                let leader = cluster.leader(TOPIC, 0).await?;
                let victim = if of_the_leader { leader } else { (leader + 1) % 3 };
                let ballast = volumes[victim].fill()?;
                // The others go on, and what the full node cannot take it takes later.
                progress.by(1000).await?;
                std::fs::remove_file(ballast)?;
                progress.by(500).await
            })
            .await
        })
    })
}

#[test]
fn a_follower_whose_disk_is_full_does_not_stop_the_others_and_catches_up() -> Result<()> {
    run_full("failover::a_follower_whose_disk_is_full_does_not_stop_the_others_and_catches_up", false)
}

#[test]
fn a_leader_whose_disk_is_full_makes_way() -> Result<()> {
    run_full("failover::a_leader_whose_disk_is_full_makes_way", true)
}
