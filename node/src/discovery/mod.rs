//! Finds addresses at which nodes may be reached. Nothing more: who is there, and what to make of it, is asked and decided
//! in `membership/`.
//!
//! - An answer is a guess: addresses may be stale, half of them missing, this node's own among them.
//! - "Nobody" is an empty list. An error means that it could not be found out.
//! - Nothing is remembered between look-ups, since pods come and go.
//! - An answer has no duplicates, the same order for the same facts, and at most [`ADDRESSES_MAX`] addresses.
//!
//! `static_list.rs` repeats the configured seeds, `dns.rs` resolves a name, `gossip.rs` asks around by UDP.

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

/// Most addresses that one look-up returns; what is beyond is left out. Ten times the largest cluster that we have in mind.
pub const ADDRESSES_MAX: usize = 1000;

/// A source of addresses.
pub trait Discovery: Send + Sync {
    /// The addresses, each `HOST:PORT`, that are known now. May be dropped at any time.
    ///
    /// # Errors
    /// When it could not be found out whether there are any.
    fn lookup(&self) -> BoxFuture<'_, Result<Vec<String>, DiscoveryError>>;

    /// Ends what runs in the background, and waits for it. After it `lookup` may know nothing.
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Why addresses could not be found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The configured name is not one.
    #[error("{name:?} is not a name to look up: {why}")]
    Name {
        /// As configured.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The system's resolver configuration could not be read.
    #[error("the configuration of the system's resolver could not be read: {0}")]
    System(String),
    /// No answer, or one that does not say whether there are records.
    #[error("looking up {name} failed: {why}")]
    Lookup {
        /// What was looked up.
        name: String,
        /// From the name server, or a time-out.
        why: String,
    },
    /// An address to gossip on does not work.
    #[error("gossip address {address:?}: {why}")]
    GossipAddress {
        /// As configured.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// The task that gossips has ended.
    #[error("gossip has stopped: {0}")]
    GossipStopped(String),
}

/// What a source tells about the node that it runs on.
#[derive(Debug, Clone)]
pub struct Announced {
    /// UUID of the node's data directory.
    pub node_id: Uuid,
    /// New with every start of the process.
    pub boot: u64,
    /// `HOST:PORT` of the data port, as others reach it.
    pub address: String,
}

/// The source that the configuration asks for. Must be called within a tokio runtime; `shutdown` it when done.
///
/// # Errors
/// When the configured name or address cannot be used, or the gossip port not be bound.
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

/// Where others gossip to: what is configured, else where we listen, else, when that is every interface, the host of the
/// data address.
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
    found.first().copied().ok_or_else(|| refuse("others cannot reach it; set cluster.gossip-address".into()))
}

/// Host and port of `HOST:PORT`. The host keeps the brackets of an IPv6 address.
fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plain = !bare.is_empty() && !bare.contains(|byte: char| byte.is_whitespace() || byte.is_control());
    plain.then_some((host, port))
}

/// The first of each, at most [`ADDRESSES_MAX`], in the order given.
fn distinct(addresses: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut known = HashSet::new();
    addresses.into_iter().filter(|address| known.insert(address.clone())).take(ADDRESSES_MAX).collect()
}
