//! Tests of the source chosen by the configuration.

use super::*;

fn own(address: &str) -> Announced {
    Announced { node_id: Uuid::from_u128(1), boot: 1, address: address.into() }
}

async fn gossips_at(listen: &str, address: &str, data: &str) -> Result<String, String> {
    let config = ClusterConfig {
        gossip_listen: listen.parse().unwrap(),
        gossip_address: address.into(),
        ..ClusterConfig::default()
    };
    let found = advertised_gossip(&config, &own(data)).await;
    found.map(|address| address.to_string()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn others_gossip_to_what_is_configured_or_to_where_we_listen_or_to_the_host_of_the_data_address() {
    assert_eq!(gossips_at("0.0.0.0:7401", "127.0.0.3:9", "127.0.0.2:7400").await.unwrap(), "127.0.0.3:9");
    assert_eq!(gossips_at("127.0.0.1:7401", "", "127.0.0.2:7400").await.unwrap(), "127.0.0.1:7401");
    assert_eq!(gossips_at("0.0.0.0:7401", "", "127.0.0.2:7400").await.unwrap(), "127.0.0.2:7401");
    assert_eq!(gossips_at("[::]:7401", "", "[::1]:7400").await.unwrap(), "[::1]:7401");
}

#[tokio::test]
async fn an_address_that_others_cannot_gossip_to_is_an_error_that_names_it() {
    for (listen, address, data) in [("0.0.0.0:7401", "", "0.0.0.0:7400"), ("0.0.0.0:7401", "[::1]:9", "127.0.0.1:7400")]
    {
        let error = gossips_at(listen, address, data).await.unwrap_err();
        assert!(error.contains("cluster.gossip-address"), "{error}");
    }
}

#[tokio::test]
async fn every_kind_of_discovery_can_be_configured() {
    let mut config = ClusterConfig { seeds: vec!["b:7400".into()], ..ClusterConfig::default() };
    let found = from_config(&config, &own("a:7400")).await.unwrap();
    assert_eq!(found.lookup().await.unwrap(), ["b:7400"]);
    config.discovery = DiscoveryKind::Dns;
    config.dns_name = "nonsense".into();
    let refused = from_config(&config, &own("a:7400")).await;
    assert!(matches!(refused.err(), Some(DiscoveryError::Name { name, .. }) if name == "nonsense"));
    config.discovery = DiscoveryKind::Gossip;
    config.gossip_listen = "127.0.0.1:0".parse().unwrap();
    config.seeds = Vec::new();
    let gossip = from_config(&config, &own("a:7400")).await.unwrap();
    assert_eq!(gossip.lookup().await.unwrap(), [""; 0]);
    gossip.shutdown().await;
}
