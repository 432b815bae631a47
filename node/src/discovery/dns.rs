//! Addresses from DNS, such as those of a headless Service of Kubernetes.
//!
//! `NAME:PORT` is looked up as A and AAAA records and gets the port; `_SERVICE._tcp.NAME` as SRV records (RFC 2782),
//! which bring the port, and their targets as A and AAAA records. A name that does not exist, or has no records, gives
//! an empty result: a headless Service without pods looks like that. Time-outs and refusals are errors.
//! hickory-resolver repeats truncated queries over TCP.
//!
//! A name that ends with a dot is not completed with the search list of resolv.conf.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

use super::{ADDRESSES_MAX, Discovery, DiscoveryError, split_host_port};

/// Longest wait for one answer of a name server; the caller repeats the look-up anyway.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Targets of SRV records that are looked up at the same time.
const TARGETS_AT_ONCE: usize = 16;

/// Addresses from A, AAAA or SRV records.
pub struct DnsDiscovery {
    query: DnsQuery,
    resolver: TokioResolver,
}

enum DnsQuery {
    Hosts { name: String, port: u16 },
    Service { name: String },
}

impl DnsDiscovery {
    /// Uses the name servers of the system (`/etc/resolv.conf`), after `/etc/hosts`.
    ///
    /// # Errors
    /// When `name` is neither `NAME:PORT` nor `_SERVICE._tcp.NAME`, or the system's configuration cannot be read.
    pub fn from_system(name: &str) -> Result<Self, DiscoveryError> {
        let (config, options) = hickory_resolver::system_conf::read_system_conf()
            .map_err(|error| DiscoveryError::System(error.to_string()))?;
        Self::build(name, config, options)
    }

    /// Uses these name servers, over UDP and, for long answers, TCP, without a search list.
    ///
    /// # Errors
    /// When `name` is neither `NAME:PORT` nor `_SERVICE._tcp.NAME`.
    pub fn with_name_servers(name: &str, servers: &[SocketAddr]) -> Result<Self, DiscoveryError> {
        let server = |address: &SocketAddr| {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = address.port());
            NameServerConfig::new(address.ip(), true, connections)
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        Self::build(name, config, ResolverOpts::default())
    }

    fn build(name: &str, config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, DiscoveryError> {
        let refuse = |why: String| DiscoveryError::Name { name: name.to_owned(), why };
        let query = if name.starts_with('_') {
            DnsQuery::Service { name: name.to_owned() }
        } else {
            let (host, port) = split_host_port(name).ok_or_else(|| refuse("must be NAME:PORT".into()))?;
            DnsQuery::Hosts { name: host.to_owned(), port }
        };
        // No caching: pods change from one second to the next.
        options.cache_size = 0;
        options.positive_max_ttl = Some(Duration::ZERO);
        options.negative_max_ttl = Some(Duration::ZERO);
        options.positive_min_ttl = None;
        options.negative_min_ttl = None;
        options.timeout = options.timeout.min(ANSWER_TIMEOUT);
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().map_err(|error| DiscoveryError::System(error.to_string()))?;
        Ok(Self { query, resolver })
    }

    /// Returns the addresses of one host; empty when it has none.
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DiscoveryError> {
        match self.resolver.lookup_ip(name).await {
            Ok(found) => return Ok(found.iter().take(ADDRESSES_MAX).collect()),
            Err(error) => no_records(name, error)?,
        }
        // The resolver reports only the error of the A query. "No records" must not hide that the AAAA query failed.
        match self.resolver.ipv6_lookup(name).await {
            Ok(found) => Ok(found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()),
            Err(error) => no_records(name, error).map(|()| Vec::new()),
        }
    }

    async fn hosts(&self, name: &str, port: u16) -> Result<BTreeSet<SocketAddr>, DiscoveryError> {
        Ok(self.addresses(name).await?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn service(&self, name: &str) -> Result<BTreeSet<SocketAddr>, DiscoveryError> {
        let answer = match self.resolver.srv_lookup(name).await {
            Ok(answer) => answer,
            Err(error) => return no_records(name, error).map(|()| BTreeSet::new()),
        };
        let targets: BTreeSet<(String, u16)> = answer
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                // The target "." means that the service does not exist.
                RData::SRV(service) if !service.target.is_root() && service.port > 0 => {
                    Some((service.target.to_utf8(), service.port))
                }
                _ => None,
            })
            .take(ADDRESSES_MAX)
            .collect();
        let mut found = BTreeSet::new();
        let mut failed = None;
        let mut answers = stream::iter(targets)
            .map(|(target, port)| async move { self.hosts(&target, port).await })
            .buffer_unordered(TARGETS_AT_ONCE);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(addresses) => found.extend(addresses),
                Err(error) => failed = Some(error),
            }
        }
        // Some names are usually missing while pods start: an error only when no address was found.
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }
}

impl Discovery for DnsDiscovery {
    fn lookup(&self) -> BoxFuture<'_, Result<Vec<String>, DiscoveryError>> {
        Box::pin(async {
            // Sorted, because name servers rotate their answers.
            let found = match &self.query {
                DnsQuery::Hosts { name, port } => self.hosts(name, *port).await?,
                DnsQuery::Service { name } => self.service(name).await?,
            };
            Ok(found.iter().take(ADDRESSES_MAX).map(SocketAddr::to_string).collect())
        })
    }
}

/// Returns `Ok` when the answer was that no such records exist.
fn no_records(name: &str, error: NetError) -> Result<(), DiscoveryError> {
    if error.is_no_records_found() {
        return Ok(());
    }
    Err(DiscoveryError::Lookup { name: name.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests;
