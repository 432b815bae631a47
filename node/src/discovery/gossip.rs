//! Addresses by gossip (chitchat: scuttlebutt over UDP, with a phi-accrual failure detector), for environments without
//! a name service.
//!
//! A member is (node UUID, boot, gossip address); it publishes its data address under [`DATA_ADDRESS`]. Members that
//! the failure detector considers dead are left out, and so is this node. Messages of nodes with another gossip name
//! are ignored. An address from gossip is only a hint where a node may be: no decision depends on gossip.

use std::net::SocketAddr;
use std::time::Duration;

use chitchat::transport::Transport;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat};
use futures::future::BoxFuture;
use tokio::sync::Mutex;

use super::{Announced, Discovery, DiscoveryError, distinct, split_host_port};

/// Key of a member's `HOST:PORT` for data.
const DATA_ADDRESS: &str = "data-address";

/// Interval in which a node sends gossip to a few others. All nodes know a new node after a few intervals.
const INTERVAL: Duration = Duration::from_millis(200);

/// Options of gossip.
#[derive(Debug, Clone)]
pub struct GossipOptions {
    /// Name of the gossip cluster; messages of nodes with another name are ignored.
    pub name: String,
    /// UDP address to bind.
    pub listen: SocketAddr,
    /// Address that other nodes send to.
    pub advertised: SocketAddr,
    /// Initial `HOST:PORT` addresses; names are resolved again once a minute.
    pub seeds: Vec<String>,
}

/// Addresses of the live members, by gossip.
pub struct GossipDiscovery {
    /// `None` after the shutdown.
    gossip: Mutex<Option<ChitchatHandle>>,
    own: String,
}

impl GossipDiscovery {
    /// Binds the port and starts gossip in a dedicated task, which ends with `shutdown`.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start(
        options: GossipOptions,
        own: &Announced,
        transport: &dyn Transport,
    ) -> Result<Self, DiscoveryError> {
        let address = options.listen.to_string();
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(own.node_id.to_string(), own.boot, options.advertised),
            cluster_id: options.name,
            gossip_interval: INTERVAL,
            listen_addr: options.listen,
            seed_nodes: options.seeds,
            failure_detector_config: FailureDetectorConfig {
                initial_interval: 5 * INTERVAL,
                dead_node_grace_period: Duration::from_secs(3600),
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: Duration::from_secs(3600),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V0,
        };
        let published = vec![(DATA_ADDRESS.to_owned(), own.address.clone())];
        let gossip = spawn_chitchat(config, published, transport)
            .await
            .map_err(|error| DiscoveryError::GossipAddress { address, why: format!("{error:#}") })?;
        Ok(Self { gossip: Mutex::new(Some(gossip)), own: own.node_id.to_string() })
    }
}

impl Discovery for GossipDiscovery {
    fn lookup(&self) -> BoxFuture<'_, Result<Vec<String>, DiscoveryError>> {
        Box::pin(async {
            let gossip = self.gossip.lock().await;
            let gossip = gossip.as_ref().ok_or_else(|| DiscoveryError::GossipStopped("shut down".into()))?;
            if let Some(ended) = futures::FutureExt::now_or_never(gossip.termination_watcher()) {
                let why = ended.err().map_or_else(|| "the task has ended".to_owned(), |error| format!("{error:#}"));
                return Err(DiscoveryError::GossipStopped(why));
            }
            let known = gossip.chitchat();
            let known = known.lock().await;
            let mut addresses: Vec<String> = known
                .live_nodes()
                .filter(|member| *member.node_id != *self.own)
                .filter_map(|member| known.node_state(member)?.get(DATA_ADDRESS))
                .filter(|address| split_host_port(address).is_some())
                .map(str::to_owned)
                .collect();
            addresses.sort_unstable();
            Ok(distinct(addresses))
        })
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(gossip) = self.gossip.lock().await.take()
                && let Err(error) = gossip.shutdown().await
            {
                tracing::warn!(error = format!("{error:#}"), "gossip ended with an error");
            }
        })
    }
}

#[cfg(test)]
mod tests;
