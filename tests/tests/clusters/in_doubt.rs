//! A damaged last record that looks like a torn write: the replica that lost it elects nobody who does not have it.

use anyhow::{Context, Result, ensure};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::{api, replica};

const TOPIC: &str = "doubt";

async fn append(cluster: &Cluster, number: usize, value: &str) -> Result<i64> {
    let mut client = api::log(cluster.node(number).address()).await?;
    Ok(api::append(&mut client, TOPIC, value.to_owned().into()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_last_acknowledged_record_and_a_lost_leader_lose_nothing() -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    let first = cluster.replicas(TOPIC, 0).await?[0];
    cluster.eventually("an append", async |cluster| append(cluster, first, "early").await).await?;
    cluster.caught_up(TOPIC).await?;
    let (leader, log) = (cluster.leader(TOPIC, 0).await?, cluster.log_id(TOPIC, 0).await?);
    let (follower, behind) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(behind);
    let last = cluster.eventually("an append", async |cluster| append(cluster, leader, "last").await).await?;
    // At once: no mark vouches for the last record yet.
    cluster.kill(follower);
    cluster.kill(leader);
    let newest = replica::segments(cluster.node(follower).data_dir(), log)?.pop().context("a segment")?;
    replica::flip_in_last_record(&newest)?;

    // Neither is ready before the other one runs.
    for number in [follower, behind] {
        cluster.node_mut(number).launch()?;
    }
    cluster.wait_ready(&[follower, behind])?;
    let in_doubt = |cluster: &Cluster| -> Result<bool> {
        let metric = |name: &str| Ok::<_, anyhow::Error>(cluster.node(follower).metric(name)? == Some(1.0));
        // A slow machine has given the mark time: then the damage is certain.
        Ok(metric("chronicle_partitions_in_doubt")? || metric("chronicle_partitions_damaged")?)
    };
    let mut looks = 0;
    let instead = cluster
        .eventually("a follower in doubt", async |cluster| {
            for number in [follower, behind] {
                if let Ok(offset) = append(cluster, number, "instead").await {
                    return Ok(Some(offset));
                }
            }
            ensure!(in_doubt(cluster)?, "it is not in doubt yet");
            // An election takes its time.
            looks += 1;
            ensure!(looks >= 3, "{looks} looks");
            Ok(None)
        })
        .await?;
    ensure!(instead.is_none(), "an append got offset {instead:?}, the acknowledged record has offset {last}");

    cluster.restart(leader)?;
    cluster.settled().await?;
    let next = cluster
        .eventually("an append", async |cluster| {
            let leader = cluster.leader(TOPIC, 0).await?;
            append(cluster, leader, "after").await
        })
        .await?;
    ensure!(next > last, "offset {next} after {last}");
    cluster.caught_up(TOPIC).await?;
    cluster
        .eventually("nobody is in doubt", async |cluster| {
            ensure!(!in_doubt(cluster)?, "the follower");
            Ok(())
        })
        .await?;
    let leader = cluster.leader(TOPIC, 0).await?;
    let served = api::read_all(cluster.node(leader).address(), TOPIC, 1 << 20).await?;
    let found = served.iter().find(|record| record.offset == last).and_then(|record| record.value.as_deref());
    ensure!(found == Some(b"last"), "the leader serves {found:?} at offset {last}");
    for number in 0..3 {
        cluster.terminate(number)?;
        let stored = replica::read(cluster.node(number).data_dir(), log)?;
        let found = stored.iter().find(|record| record.offset == last).and_then(|record| record.value.as_deref());
        ensure!(found == Some(b"last"), "node-{number} has {found:?} at offset {last}");
    }
    cluster.finish()
}
