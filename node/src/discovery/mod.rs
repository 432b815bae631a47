//! Finds addresses at which nodes may be reached, and nothing else: `membership/` contacts them and decides.
//!
//! - A result is a hint: addresses may be stale or missing, and this node's own may be among them.
//! - An empty list means that no address exists. An error means that the look-up failed.
//! - Nothing is cached between look-ups, since pods come and go.
//! - A result has no duplicates, the same order for the same addresses, and at most [`ADDRESSES_MAX`] addresses.
//!
//! `static_list.rs` returns the configured seeds, `dns.rs` resolves a name, `gossip.rs` gossips over UDP.

mod dns;
mod gossip;
mod static_list;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use uuid::Uuid;

pub use dns::DnsDiscovery;
pub use gossip::{GossipDiscovery, GossipOptions};
pub use static_list::StaticDiscovery;

use crate::config::{ClusterConfig, DiscoveryKind};

/// Most addresses that one look-up returns; further ones are left out. Ten times the largest supported cluster.
pub const ADDRESSES_MAX: usize = 1000;

/// A source of addresses.
pub trait Discovery: Send + Sync {
    /// Returns the addresses, each `HOST:PORT`, that are known now. Safe to cancel.
    ///
    /// # Errors
    /// When the look-up failed, so that it is unknown whether there are addresses.
    fn lookup(&self) -> BoxFuture<'_, Result<Vec<String>, DiscoveryError>>;

    /// Stops background tasks and waits for their end. `lookup` may fail afterwards.
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Why addresses could not be found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The configured name is not valid.
    #[error("cluster.dns-name: {name:?}: {why}")]
    Name {
        /// As configured.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The system's resolver configuration could not be read.
    #[error("read the resolver configuration of the system: {0}")]
    System(String),
    /// No answer, or one that does not say whether there are records.
    #[error("look up {name}: {why}")]
    Lookup {
        /// What was looked up.
        name: String,
        /// From the name server, or a time-out.
        why: String,
    },
    /// A gossip address cannot be used.
    #[error("gossip address {address:?}: {why}")]
    GossipAddress {
        /// As configured.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// The gossip task has ended.
    #[error("gossip has stopped: {0}")]
    GossipStopped(String),
}

/// The node's own address, which a source publishes to other nodes.
#[derive(Debug, Clone)]
pub struct Announced {
    /// UUID of the node's data directory.
    pub node_id: Uuid,
    /// New with every start of the process.
    pub boot: u64,
    /// `HOST:PORT` at which other nodes reach the data port.
    pub address: String,
}

/// Returns the configured source. Must be called within a tokio runtime; call `shutdown` when done.
///
/// # Errors
/// When the configured name or address cannot be used, or the gossip port cannot be bound.
pub async fn from_config(config: &ClusterConfig, own: &Announced) -> Result<Arc<dyn Discovery>, DiscoveryError> {
    Ok(match config.discovery {
        DiscoveryKind::Static => Arc::new(StaticDiscovery::new(config.seeds.clone())),
        DiscoveryKind::Dns => Arc::new(DnsDiscovery::from_system(&config.dns_name)?),
        DiscoveryKind::Gossip => {
            let options = GossipOptions {
                name: config.gossip_name.clone(),
                listen: config.gossip_listen,
                advertised: advertised_gossip(config, own).await?,
                seeds: config.seeds.clone(),
            };
            Arc::new(GossipDiscovery::start(options, own, &chitchat::transport::UdpTransport).await?)
        }
    })
}

/// Returns the address that other nodes send gossip to: the configured one, else the listening address, else, when that
/// is every interface, the host of the data address.
async fn advertised_gossip(config: &ClusterConfig, own: &Announced) -> Result<SocketAddr, DiscoveryError> {
    let listen = config.gossip_listen;
    let wanted = if !config.gossip_address.is_empty() {
        config.gossip_address.clone()
    } else if !listen.ip().is_unspecified() {
        return Ok(listen);
    } else {
        let host = split_host_port(&own.address).map_or("", |(host, _)| host);
        format!("{host}:{}", listen.port())
    };
    let refuse = |why: String| DiscoveryError::GossipAddress { address: wanted.clone(), why };
    let mut found: Vec<_> =
        tokio::net::lookup_host(&wanted).await.map_err(|error| refuse(error.to_string()))?.collect();
    found.sort_unstable();
    // A socket of one family does not reach the other.
    found.retain(|address| address.is_ipv4() == listen.is_ipv4() && !address.ip().is_unspecified());
    found.first().copied().ok_or_else(|| refuse("other nodes cannot reach it: set cluster.gossip-address".into()))
}

/// Splits `HOST:PORT` into host and port. The host keeps the brackets of an IPv6 address.
fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plain = !bare.is_empty() && !bare.contains(|byte: char| byte.is_whitespace() || byte.is_control());
    plain.then_some((host, port))
}

/// Removes duplicates and keeps the order; at most [`ADDRESSES_MAX`].
fn distinct(addresses: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut known = HashSet::new();
    addresses.into_iter().filter(|address| known.insert(address.clone())).take(ADDRESSES_MAX).collect()
}
