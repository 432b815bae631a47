//! Networks that are cut, both ways and one way, around the minority and around the majority: whoever can reach a majority
//! goes on, nobody else acknowledges anything, and afterwards all replicas are the same.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::history::{Following, Load, Writing, check_read};
use chronicle_tests::netns::{self, End, Network};
use chronicle_tests::node::PATIENCE;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const TOPIC: &str = "cuts";

async fn under_load(test: &str, trouble: impl AsyncFnOnce(&mut Cluster, &Writing) -> Result<()>) -> Result<()> {
    if !netns::wanted(test) {
        return Ok(());
    }
    let mut cluster = Cluster::of(3).network()?.start().await?;
    cluster.create_topic(TOPIC, 1, 3, None).await?;
    let servers = cluster.servers();
    let following = Following::start(&servers, TOPIC, 0)?;
    let writing = Load::new(TOPIC).start(&servers)?;
    writing.progress(100, PATIENCE).await?;
    trouble(&mut cluster, &writing).await?;
    cluster.settled().await?;
    writing.progress(100, PATIENCE).await?;
    let history = writing.stop().await?;
    println!("{} acknowledged, longest silence {:?}", history.acknowledged(), history.longest_silence());
    ensure!(history.errors().is_empty(), "the client did not hide {:?}", history.errors());
    let read = following.read_to(history.end(0)).await?;
    let stored = cluster.check_disks(TOPIC, &history).await?;
    check_read(&read, &stored[0])?;
    cluster.finish()
}

/// The leader and the two others.
async fn sides(cluster: &Cluster) -> Result<(End, [End; 2])> {
    let leader = cluster.leader(TOPIC, 0).await?;
    Ok((End::Node(leader), [End::Node((leader + 1) % 3), End::Node((leader + 2) % 3)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_from_the_others_is_replaced() -> Result<()> {
    under_load("a_leader_that_is_cut_off_from_the_others_is_replaced", async |cluster, writing| {
        // Clients still reach it: it must not acknowledge what the others do not hold.
        let (leader, others) = sides(cluster).await?;
        cluster.network().cut(&[leader], &others)?;
        writing.progress(300, PATIENCE).await?;
        cluster.network().heal(&[leader], &others)?;
        cluster.settled().await?;
        // Nobody reaches it.
        let (leader, others) = sides(cluster).await?;
        let everybody = [others[0], others[1], End::Outside];
        cluster.network().cut(&[leader], &everybody)?;
        writing.progress(300, PATIENCE).await?;
        cluster.network().heal(&[leader], &everybody)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_only_sends_or_only_receives_is_replaced() -> Result<()> {
    under_load("a_leader_that_only_sends_or_only_receives_is_replaced", async |cluster, writing| {
        let (leader, others) = sides(cluster).await?;
        for other in others {
            cluster.network().cut_one_way(leader, other)?;
        }
        writing.progress(300, PATIENCE).await?;
        for other in others {
            cluster.network().heal_one_way(leader, other)?;
        }
        cluster.settled().await?;
        let (leader, others) = sides(cluster).await?;
        for other in others {
            cluster.network().cut_one_way(other, leader)?;
        }
        writing.progress(300, PATIENCE).await?;
        others.iter().try_for_each(|other| cluster.network().heal_one_way(*other, leader))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_cut_off_catches_up_and_two_that_cannot_reach_each_other_continue() -> Result<()> {
    let test = "a_follower_that_is_cut_off_catches_up_and_two_that_cannot_reach_each_other_continue";
    under_load(test, async |cluster, writing| {
        let (leader, [one, two]) = sides(cluster).await?;
        cluster.network().cut(&[one], &[leader, two])?;
        writing.progress(300, PATIENCE).await?;
        cluster.network().heal(&[one], &[leader, two])?;
        cluster.settled().await?;
        // Each still has a majority through the third.
        let (leader, [one, _]) = sides(cluster).await?;
        cluster.network().cut(&[leader], &[one])?;
        writing.progress(300, PATIENCE).await?;
        cluster.network().heal(&[leader], &[one])
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_majority_nothing_is_acknowledged_and_all_is_when_it_returns() -> Result<()> {
    let test = "without_any_majority_nothing_is_acknowledged_and_all_is_when_it_returns";
    under_load(test, async |cluster, writing| {
        let nodes = [End::Node(0), End::Node(1), End::Node(2)];
        cluster.network().cut(&nodes[..1], &nodes[1..])?;
        cluster.network().cut(&nodes[1..2], &nodes[2..])?;
        // What was under way may still be answered; then nothing is.
        let quiet = async {
            let mut before = writing.acknowledged();
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let now = writing.acknowledged();
                if now == before {
                    return;
                }
                before = now;
            }
        };
        tokio::time::timeout(PATIENCE, quiet).await.context("each for itself goes on acknowledging")?;
        cluster.network().heal(&nodes[..1], &nodes[1..])?;
        cluster.network().heal(&nodes[1..2], &nodes[2..])?;
        writing.progress(300, PATIENCE).await
    })
    .await
}

/// A socket inside a node's namespace.
fn socket(network: &Network, node: usize) -> Result<UdpSocket> {
    let namespace = std::fs::File::open(format!("/run/netns/{}", network.namespace(node)))?;
    let address = SocketAddr::new(network.address(node), 7000);
    // A socket stays in the namespace in which it was made; only that thread goes there.
    let made = std::thread::spawn(move || -> Result<UdpSocket> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(UdpSocket::bind(address)?)
    });
    let socket = made.join().expect("making a socket does not panic")?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Whether a packet arrives, when several are sent. By number and not by time: this process may be kept waiting too.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> Result<bool> {
    let mut buffer = [0; 16];
    let target = to.local_addr()?;
    // What is left from before.
    while to.recv(&mut buffer).is_ok() {}
    for _ in 0..25 {
        from.send_to(b"there?", target)?;
        if to.recv(&mut buffer).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn a_cut_is_silent_goes_one_way_and_heals() -> Result<()> {
    if !netns::wanted("a_cut_is_silent_goes_one_way_and_heals") {
        return Ok(());
    }
    let network = Network::new(2)?;
    let (a, b) = (socket(&network, 0)?, socket(&network, 1)?);
    let outside = UdpSocket::bind("0.0.0.0:0")?;
    ensure!(arrives(&a, &b)? && arrives(&b, &a)?, "nothing arrives before there is a cut");
    network.cut_one_way(End::Node(0), End::Node(1))?;
    ensure!(!arrives(&a, &b)?, "the cut lets through");
    ensure!(arrives(&b, &a)?, "the other direction is cut too");
    ensure!(arrives(&outside, &b)?, "the test process is cut off");
    network.heal_one_way(End::Node(0), End::Node(1))?;
    ensure!(arrives(&a, &b)?, "the cut does not heal");
    network.cut(&[End::Node(0)], &[End::Node(1), End::Outside])?;
    ensure!(!arrives(&a, &b)? && !arrives(&b, &a)? && !arrives(&outside, &a)?, "a cut both ways lets through");
    ensure!(arrives(&outside, &b)?, "the other node is cut off");
    network.heal(&[End::Node(0)], &[End::Node(1), End::Outside])?;
    ensure!(arrives(&a, &b)? && arrives(&outside, &a)?, "the cut does not heal");
    Ok(())
}
