//! Three real instances over UDP on loopback; dead members and other clusters over channels and simulated time.

use chitchat::transport::{ChannelTransport, UdpTransport};
use tokio::time::timeout;
use uuid::Uuid;

use super::*;

struct GossipNode {
    gossip: GossipDiscovery,
    data: String,
}

async fn member(
    number: u16,
    name: &str,
    listen: SocketAddr,
    seed: SocketAddr,
    transport: &dyn Transport,
) -> GossipNode {
    let data = format!("node-{number}:7400");
    let own = Announced { node_id: Uuid::from_u128(number.into()), boot: number.into(), address: data.clone() };
    let options = GossipOptions { name: name.into(), listen, advertised: listen, seeds: vec![seed.to_string()] };
    GossipNode { gossip: GossipDiscovery::start(options, &own, transport).await.unwrap(), data }
}

async fn sees(member: &GossipNode, others: &[&GossipNode]) {
    let expected: Vec<_> = others.iter().map(|other| other.data.as_str()).collect();
    let seen = async {
        while member.gossip.lookup().await.unwrap() != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), seen)
        .await
        .unwrap_or_else(|_| panic!("{} does not see {expected:?}", member.data));
}

#[tokio::test]
async fn three_instances_on_loopback_find_one_another_through_one_seed() {
    let free = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let sockets = [free(), free(), free()];
    let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    drop(sockets);
    let a = member(1, "chronicle", ports[0], ports[0], &UdpTransport).await;
    let b = member(2, "chronicle", ports[1], ports[0], &UdpTransport).await;
    let c = member(3, "chronicle", ports[2], ports[0], &UdpTransport).await;
    sees(&a, &[&b, &c]).await;
    sees(&b, &[&a, &c]).await;
    sees(&c, &[&a, &b]).await;
    for member in [&a, &b, &c] {
        member.gossip.shutdown().await;
    }
    assert!(matches!(a.gossip.lookup().await, Err(DiscoveryError::GossipStopped(_))));
}

#[tokio::test(start_paused = true)]
async fn members_that_died_are_left_out_and_come_back_with_a_new_boot() {
    let network = ChannelTransport::default();
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let a = member(1, "chronicle", at(1), at(1), &network).await;
    let b = member(2, "chronicle", at(2), at(1), &network).await;
    sees(&a, &[&b]).await;
    b.gossip.shutdown().await;
    sees(&a, &[]).await;
    let own = Announced { node_id: Uuid::from_u128(2), boot: 1, address: b.data.clone() };
    let options =
        GossipOptions { name: "chronicle".into(), listen: at(3), advertised: at(3), seeds: vec![at(1).to_string()] };
    let again = GossipDiscovery::start(options, &own, &network).await.unwrap();
    sees(&a, &[&GossipNode { gossip: again, data: b.data.clone() }]).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_gossip_under_another_name_are_not_listened_to() {
    let network = ChannelTransport::default();
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let a = member(1, "chronicle", at(1), at(2), &network).await;
    let foreign = member(2, "other", at(2), at(1), &network).await;
    let b = member(3, "chronicle", at(3), at(1), &network).await;
    sees(&a, &[&b]).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    sees(&a, &[&b]).await;
    sees(&foreign, &[]).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_it() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let own = Announced { node_id: Uuid::from_u128(1), boot: 1, address: "a:7400".into() };
    let options = GossipOptions { name: "chronicle".into(), listen, advertised: listen, seeds: Vec::new() };
    let error = GossipDiscovery::start(options, &own, &UdpTransport).await.err().unwrap().to_string();
    assert!(error.contains(&listen.to_string()), "{error}");
}
