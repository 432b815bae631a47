//! The faults, and how each begins and ends.

use std::time::Duration;

use anyhow::Result;
use chronicle_tests::cluster::Cluster;
use chronicle_tests::netns::End;
use rand::Rng;
use rand::rngs::StdRng;

use super::NODES;

/// Milliseconds by which a clock is wrong: up to an hour behind or a day ahead, less than topics keep their records.
const CLOCK_SHIFTS: std::ops::Range<i64> = -3_600_000..86_400_000;

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// `kill -9` of one node.
    Kill,
    /// `kill -9` of all nodes at once.
    KillAll,
    /// A clean stop.
    Stop,
    /// The process does not run for longer than any lease or timeout.
    Pause,
    /// The process does not run for about as long as a lease.
    Stutter,
    /// A node is cut off from the others; clients reach it.
    CutFromPeers,
    /// Nothing that a node sends reaches one other node.
    CutOneWay,
    /// What a node sends to the others is lost for a few milliseconds, again and again: late and repeated by TCP.
    LosePackets,
    /// Every flush of a node fails.
    FailFlushes,
    /// Flushes of a node do not return for a while.
    HangFlushes,
    /// Flushes of a node take long.
    SlowFlushes,
    /// The disk of a node is full, without a warning.
    FillDisk,
    /// Some writes of a node fail.
    FailWrites,
    /// The wall clock of a node jumps, and back.
    JumpClock,
    /// `kill -9` of a node whose flushes hang: what it wrote last was not flushed, and stays in the page cache.
    KillWhileFlushesHang,
}

pub(super) const FAULTS: [Fault; 15] = [
    Fault::Kill,
    Fault::KillAll,
    Fault::Stop,
    Fault::Pause,
    Fault::Stutter,
    Fault::CutFromPeers,
    Fault::CutOneWay,
    Fault::LosePackets,
    Fault::FailFlushes,
    Fault::HangFlushes,
    Fault::SlowFlushes,
    Fault::FillDisk,
    Fault::FailWrites,
    Fault::JumpClock,
    Fault::KillWhileFlushesHang,
];

/// Starts nodes again that have ended because of their disk: a node whose controller group cannot write ends with the reason.
pub(super) fn revive(cluster: &mut Cluster) -> Result<()> {
    for node in 0..NODES {
        if cluster.node_mut(node).has_ended()? {
            cluster.restart(node)?;
        }
    }
    Ok(())
}

/// One fault, from its beginning to its end.
pub(super) async fn strike(cluster: &mut Cluster, fault: Fault, random: &mut StdRng) -> Result<()> {
    let node = random.random_range(0..NODES);
    let [one, two] = [(node + 1) % NODES, (node + 2) % NODES];
    let shift = random.random_range(CLOCK_SHIFTS);
    let delay = Duration::from_millis(random.random_range(2..300));
    let mut pause = async |millis: std::ops::Range<u64>| {
        tokio::time::sleep(Duration::from_millis(random.random_range(millis))).await;
    };
    match fault {
        Fault::Kill => {
            cluster.kill(node);
            pause(0..2_000).await;
            cluster.restart(node)
        }
        Fault::KillAll => {
            cluster.kill_all();
            cluster.start_all()
        }
        Fault::Stop => {
            // It may have ended after the fault before this one.
            revive(cluster)?;
            cluster.terminate(node)?;
            pause(0..1_000).await;
            cluster.restart(node)
        }
        Fault::Pause | Fault::Stutter => {
            cluster.node(node).pause()?;
            pause(if matches!(fault, Fault::Pause) { 1_000..5_000 } else { 50..400 }).await;
            cluster.node(node).resume()
        }
        Fault::CutFromPeers => {
            let others = [End::Node(one), End::Node(two)];
            cluster.network().cut(&[End::Node(node)], &others)?;
            pause(100..5_000).await;
            cluster.network().heal(&[End::Node(node)], &others)
        }
        Fault::CutOneWay => {
            cluster.network().cut_one_way(End::Node(node), End::Node(one))?;
            pause(100..5_000).await;
            cluster.network().heal_one_way(End::Node(node), End::Node(one))
        }
        Fault::LosePackets => {
            for _ in 0..30 {
                for other in [one, two] {
                    cluster.network().cut_one_way(End::Node(node), End::Node(other))?;
                    pause(1..40).await;
                    cluster.network().heal_one_way(End::Node(node), End::Node(other))?;
                }
                pause(1..60).await;
            }
            Ok(())
        }
        Fault::FailFlushes => {
            cluster.node(node).machine().fail_flushes()?;
            pause(1..2_000).await;
            cluster.node(node).machine().heal()
        }
        Fault::HangFlushes => {
            cluster.node(node).machine().hang_flushes()?;
            pause(100..8_000).await;
            cluster.node(node).machine().heal()
        }
        Fault::SlowFlushes => {
            cluster.node(node).machine().delay_flushes(delay)?;
            pause(500..5_000).await;
            cluster.node(node).machine().heal()
        }
        Fault::FillDisk => {
            cluster.node(node).machine().fill_disk()?;
            pause(100..4_000).await;
            cluster.node(node).machine().heal()
        }
        Fault::FailWrites => {
            cluster.node(node).machine().fail_writes(3)?;
            pause(1..2_000).await;
            cluster.node(node).machine().heal()
        }
        Fault::JumpClock => {
            cluster.node(node).machine().shift_clock(shift)?;
            pause(500..5_000).await;
            cluster.node(node).machine().heal()
        }
        Fault::KillWhileFlushesHang => {
            cluster.node(node).machine().hang_flushes()?;
            pause(10..1_500).await;
            cluster.kill(node);
            cluster.node(node).machine().heal()?;
            cluster.restart(node)
        }
    }
}
