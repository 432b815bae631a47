//! Validates ranges and relations that the types cannot express, before the node opens anything.

use std::collections::BTreeMap;

use super::{ClusterConfig, Config, DiscoveryKind, SecurityConfig, TlsMode, TracesConfig, TracesProtocol};
use crate::identity::{ANYONE, NodeRules, Principal, PrincipalRules, is_server_name};
use crate::model::{Addresses, ListenerName, is_host_port, is_topic_name};

/// A field, its value, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value}: {rule}")]
pub struct InvalidConfig {
    /// Path of the field, levels joined by dots.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// The rule that it breaks.
    pub rule: String,
}

impl Config {
    /// Checks ranges and relations between fields.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let Config { node, cluster, listeners, storage, partitions, security, limits, log, metrics, telemetry } = self;
        rule("node.name", &node.name, !node.name.trim().is_empty(), "must not be empty")?;
        let data_dir = node.data_dir.display();
        rule("node.data-dir", data_dir, !node.data_dir.as_os_str().is_empty(), "must not be empty")?;
        let advertised = &node.advertised_address;
        rule("node.advertised-address", advertised, is_host_port_or_empty(advertised), "must be HOST:PORT or empty")?;
        validate_advertised(&node.advertised_addresses)?;
        let topic = &node.default_topic;
        let named = topic.is_empty() || is_topic_name(topic);
        rule("node.default-topic", topic, named, "must be 1 to 249 of a-z A-Z 0-9 . _ -, not . or .., or empty")?;

        let reload = node.config_reload_ms;
        let often = reload == 0 || (100..=3_600_000).contains(&reload);
        rule("node.config-reload-ms", reload, often, "must be 0 or from 100 to 3600000")?;

        // Different hosts can still clash when one is the wildcard, so the ports must differ.
        let ports_differ = listeners.ops.port() == 0 || listeners.ops.port() != listeners.data.port();
        rule("listeners.ops", listeners.ops, ports_differ, "must have another port than listeners.data")?;

        validate_cluster(cluster, limits.request_bytes_max as u64)?;
        validate_security(security)?;
        range("storage.flush-threads", storage.flush_threads as u64, 1, 1024)?;
        range("storage.stall-ms", storage.stall_ms, 100, 3_600_000)?;
        range("storage.index-interval-bytes", storage.index_interval_bytes, 64, 1 << 30)?;
        let entry = partitions.entry_bytes_max as u64;
        range("partitions.entry-bytes-max", entry, 1024, 1 << 30)?;
        at_least("storage.pending-bytes-max", storage.pending_bytes_max, "partitions.entry-bytes-max", entry)?;
        range("partitions.entries-in-flight-max", partitions.entries_in_flight_max as u64, 1, 1024)?;
        let queue = partitions.queue_bytes_max as u64;
        let request = limits.request_bytes_max as u64;
        range("limits.request-bytes-max", request, 1024, 1 << 30)?;
        let fits = entry <= request;
        let why = format!("must be at most limits.request-bytes-max ({request})");
        rule("partitions.entry-bytes-max", entry, fits, &why)?;
        at_least("partitions.queue-bytes-max", queue, "partitions.entry-bytes-max", entry)?;
        at_least("partitions.queue-bytes-max", queue, "limits.request-bytes-max", request)?;
        // One batch may be as large as a request; the sequencer waits for room for all of it.
        at_least("storage.pending-bytes-max", storage.pending_bytes_max, "limits.request-bytes-max", request)?;
        positive("partitions.idle-ms", partitions.idle_ms)?;
        positive("partitions.retention-check-ms", partitions.retention_check_ms)?;
        positive("partitions.versioned-keys-max", partitions.versioned_keys_max as u64)?;
        positive("partitions.producers-max", partitions.producers_max as u64)?;
        positive("partitions.producer-keep-ms", partitions.producer_keep_ms)?;

        positive("limits.connections-max", limits.connections_max as u64)?;
        positive("limits.connections-per-address-max", limits.connections_per_address_max as u64)?;
        let in_flight = limits.in_flight_bytes_max as u64;
        let both = request + limits.fetch_bytes_max as u64;
        let why = "limits.request-bytes-max + limits.fetch-bytes-max";
        at_least("limits.in-flight-bytes-max", in_flight, why, both)?;
        at_least("limits.principal-bytes-max", limits.principal_bytes_max as u64, why, both)?;
        at_least("limits.connection-bytes-max", limits.connection_bytes_max as u64, why, both)?;
        range("limits.stream-window-max", limits.stream_window_max as u64, 1, 65_536)?;
        range("limits.fetch-bytes-max", limits.fetch_bytes_max as u64, 1024, 1 << 30)?;
        positive("limits.wait-ms-max", limits.wait_ms_max)?;
        positive("limits.slow-reader-ms", limits.slow_reader_ms)?;
        positive("limits.header-timeout-ms", limits.header_timeout_ms)?;
        positive("limits.body-timeout-ms", limits.body_timeout_ms)?;
        positive("limits.topics-max", limits.topics_max as u64)?;
        let decompressed = limits.decompressed_bytes_max as u64;
        at_least("limits.decompressed-bytes-max", decompressed, "partitions.entry-bytes-max", entry)?;
        positive("limits.batch-records-max", limits.batch_records_max as u64)?;

        range("metrics.topics-max", metrics.topics_max as u64, 0, 10_000)?;
        range("metrics.groups-max", metrics.groups_max as u64, 0, 10_000)?;
        let lag = metrics.lag_interval_ms;
        rule("metrics.lag-interval-ms", lag, lag == 0 || lag >= 100, "must be 0 or at least 100")?;
        range("log.memory-bytes", log.memory_bytes as u64, 0, 1 << 30)?;
        validate_traces(&telemetry.traces)?;

        let parsed = tracing_subscriber::EnvFilter::builder().parse(&log.filter);
        let why = parsed.as_ref().err().map(|error| format!("must be a log filter: {error}")).unwrap_or_default();
        rule("log.filter", &log.filter, parsed.is_ok(), &why)
    }
}

fn validate_advertised(addresses: &BTreeMap<ListenerName, String>) -> Result<(), InvalidConfig> {
    let field = "node.advertised-addresses";
    let count = addresses.len();
    let why = format!("must be at most {} listeners", Addresses::OTHERS_MAX);
    rule(field, count, count <= Addresses::OTHERS_MAX, &why)?;
    for (name, address) in addresses {
        let why = "each must be of another listener: that of data is node.advertised-address";
        rule(field, name, !name.is_data(), why)?;
        rule(field, format!("{name}: {address}"), is_host_port(address), "each must be HOST:PORT")?;
    }
    Ok(())
}

fn validate_traces(traces: &TracesConfig) -> Result<(), InvalidConfig> {
    let TracesConfig { endpoint, protocol, sampling_ratio, .. } = traces;
    let is_url =
        ["http://", "https://"].iter().any(|scheme| endpoint.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    let why = "must be http://HOST:PORT, https://HOST:PORT or empty";
    rule("telemetry.traces.endpoint", endpoint, endpoint.is_empty() || is_url, why)?;
    let is_plain = !endpoint.starts_with("https://") || *protocol == TracesProtocol::Grpc;
    rule("telemetry.traces.endpoint", endpoint, is_plain, "must be http:// with telemetry.traces.protocol http")?;
    let ratio = sampling_ratio.get();
    rule("telemetry.traces.sampling-ratio", ratio, (0.0..=1.0).contains(&ratio), "must be from 0 to 1")?;
    let queue = traces.queue_spans_max as u64;
    range("telemetry.traces.queue-spans-max", queue, 1, 1 << 20)?;
    range("telemetry.traces.batch-spans-max", traces.batch_spans_max as u64, 1, queue)?;
    positive("telemetry.traces.interval-ms", traces.interval_ms)?;
    positive("telemetry.traces.export-timeout-ms", traces.export_timeout_ms)?;
    positive("telemetry.traces.shutdown-ms", traces.shutdown_ms)
}

fn validate_cluster(cluster: &ClusterConfig, request: u64) -> Result<(), InvalidConfig> {
    range("cluster.bootstrap-expect", cluster.bootstrap_expect.into(), 1, 99)?;
    for seed in &cluster.seeds {
        rule("cluster.seeds", seed, !seed.is_empty() && is_host_port_or_empty(seed), "each must be HOST:PORT")?;
    }
    let seeded =
        cluster.discovery != DiscoveryKind::Static || cluster.bootstrap_expect == 1 || !cluster.seeds.is_empty();
    rule("cluster.seeds", "[]", seeded, "must name other nodes when cluster.bootstrap-expect is more than 1")?;
    let dns = &cluster.dns_name;
    let named = match cluster.discovery {
        DiscoveryKind::Dns if dns.starts_with('_') => dns.matches('.').count() >= 2,
        DiscoveryKind::Dns => !dns.is_empty() && is_host_port_or_empty(dns),
        DiscoveryKind::Static | DiscoveryKind::Gossip => dns.is_empty(),
    };
    rule("cluster.dns-name", dns, named, "must be NAME:PORT or _SERVICE._tcp.NAME with discovery dns, else empty")?;
    let gossip = &cluster.gossip_address;
    rule("cluster.gossip-address", gossip, is_host_port_or_empty(gossip), "must be HOST:PORT or empty")?;
    rule("cluster.gossip-name", "", !cluster.gossip_name.is_empty(), "must not be empty")?;
    rule("cluster.voters", cluster.voters, matches!(cluster.voters, 1 | 3 | 5 | 7), "must be 1, 3, 5 or 7")?;
    range("cluster.replication-factor", cluster.replication_factor.into(), 1, 7)?;
    range("cluster.beat-interval-ms", cluster.beat_interval_ms, 10, 10_000)?;
    let (beats, suspect) = (3 * cluster.beat_interval_ms, 2 * cluster.suspect_after_ms);
    at_least("cluster.suspect-after-ms", cluster.suspect_after_ms, "three times cluster.beat-interval-ms", beats)?;
    at_least("cluster.election-timeout-ms", cluster.election_timeout_ms, "twice cluster.suspect-after-ms", suspect)?;
    range("cluster.moves-max", cluster.moves_max.into(), 1, 1000)?;
    at_least("cluster.peer-window-bytes", cluster.peer_window_bytes, "limits.request-bytes-max", request)
}

fn validate_security(security: &SecurityConfig) -> Result<(), InvalidConfig> {
    let SecurityConfig { tls, peers, principal_rules, authorization } = security;
    let files = [
        ("security.tls.cert-file", &tls.cert_file),
        ("security.tls.key-file", &tls.key_file),
        ("security.tls.ca-file", &tls.ca_file),
    ];
    for (field, file) in files {
        let named = !file.as_os_str().is_empty();
        match tls.mode {
            TlsMode::Enabled => {
                rule(field, file.display(), named, "must name a file when security.tls.mode is enabled")?
            }
            // Rejected because a user who sets the files would assume that TLS is on.
            _ => rule(field, file.display(), !named, "must be empty unless security.tls.mode is enabled")?,
        }
    }
    let name = &tls.peer_server_name;
    let fits = name.is_empty() || is_server_name(name);
    rule("security.tls.peer-server-name", name, fits, "must be a DNS name, an IP address or empty")?;
    range("security.tls.reload-ms", tls.reload_ms, 100, 3_600_000)?;
    if let Err((pattern, why)) = NodeRules::new(&peers.allowed_names, "") {
        rule("security.peers.allowed-names", pattern, false, &why)?;
    }
    if let Err((text, why)) = PrincipalRules::new(principal_rules) {
        rule("security.principal-rules", text, false, &why)?;
    }
    for user in &authorization.super_users {
        // `*` and `anonymous` are not users: with one of them as super-user, authorization would have no effect.
        let named = Principal::new(user).is_ok() && user != ANYONE;
        rule("security.authorization.super-users", user, named, "each must be the name of one principal")?;
    }
    Ok(())
}

fn rule(field: &'static str, value: impl ToString, holds: bool, rule: &str) -> Result<(), InvalidConfig> {
    if holds {
        return Ok(());
    }
    let value = value.to_string();
    let value = if value.is_empty() { "\"\"".to_owned() } else { value };
    Err(InvalidConfig { field, value, rule: rule.to_owned() })
}

fn positive(field: &'static str, value: u64) -> Result<(), InvalidConfig> {
    rule(field, value, value > 0, "must be at least 1")
}

/// Both bounds are inclusive.
fn range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), InvalidConfig> {
    rule(field, value, (min..=max).contains(&value), &format!("must be from {min} to {max}"))
}

fn at_least(field: &'static str, value: u64, other: &str, min: u64) -> Result<(), InvalidConfig> {
    rule(field, value, value >= min, &format!("must be at least {other} ({min})"))
}

fn is_host_port_or_empty(text: &str) -> bool {
    text.is_empty()
        || text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}
