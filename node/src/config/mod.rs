//! The configuration of a node.
//!
//! The documentation of every field contains its trade-off and its default. Values come from the defaults, a YAML file,
//! the environment (`CHRONICLE_` and the path of the field, levels joined by `__`) and flags; later sources override
//! earlier ones. Unknown keys are rejected, and everything is validated before the node opens anything.
//!
//! `load.rs` reads the layers, `validate.rs` checks ranges and relations, `live.rs` holds the current configuration and
//! reloads it while the node runs. `sample.yaml` contains every field with its documentation; docs/configuration.md
//! includes it.

#[cfg(test)]
mod config_fuzz;
pub mod live;
mod load;
mod telemetry;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use live::Live;
pub use load::{ConfigError, Sources, field_paths, load, load_text};
pub use telemetry::{Ratio, TelemetryConfig, TracesConfig, TracesProtocol};
pub use validate::InvalidConfig;

use crate::model::ListenerName;

/// Every field with its documentation and its default, as YAML.
pub const SAMPLE: &str = include_str!("sample.yaml");

/// Configuration of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Identity of the node.
    pub node: NodeConfig,
    /// Its cluster, and how it finds other nodes.
    pub cluster: ClusterConfig,
    /// Addresses that it listens on.
    pub listeners: ListenersConfig,
    /// Storage.
    pub storage: StorageConfig,
    /// Partitions.
    pub partitions: PartitionsConfig,
    /// TLS and authorization.
    pub security: SecurityConfig,
    /// Limits.
    pub limits: LimitsConfig,
    /// Logging.
    pub log: LoggingConfig,
    /// Metrics.
    pub metrics: MetricsConfig,
    /// Traces.
    pub telemetry: TelemetryConfig,
}

/// Identity of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NodeConfig {
    /// Name for people; the identity is the UUID in the data directory. Default: `chronicle-0`.
    pub name: String,
    /// Data directory, created when missing. One process at a time. Default: `data`.
    pub data_dir: PathBuf,
    /// `HOST:PORT` that clients and other nodes receive as this node's address; empty: the data listener's address.
    /// Default: empty.
    pub advertised_address: String,
    /// `HOST:PORT` that clients of other listeners use, by listener name (1 to 32 of `a-z 0-9 -`). Not `data`: that is
    /// `advertised-address`. Each address belongs to one node. To be set after every node runs a version that has this
    /// field. Default: none.
    pub advertised_addresses: BTreeMap<ListenerName, String>,
    /// Create this topic (one partition, default settings) when it is missing; empty: none. Default: `default`.
    pub default_topic: String,
    /// Interval between checks of the configuration file for changes, in milliseconds; 0: only on SIGHUP. Default:
    /// 10000.
    pub config_reload_ms: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: "chronicle-0".into(),
            data_dir: "data".into(),
            advertised_address: String::new(),
            advertised_addresses: BTreeMap::new(),
            default_topic: "default".into(),
            config_reload_ms: 10_000,
        }
    }
}

/// How a node finds the addresses of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiscoveryKind {
    /// The addresses in `cluster.seeds`.
    #[default]
    Static,
    /// The addresses that `cluster.dns-name` resolves to; resolved again while the node looks for its cluster.
    Dns,
    /// Gossip (chitchat), starting with the addresses in `cluster.seeds`.
    Gossip,
}

/// How a leader proves that it still leads, before it answers a linearizable read or states what its log contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinearizableReads {
    /// By its lease while that holds: 100 ms from the last messages that a majority has acknowledged; otherwise by asking
    /// a majority. Depends on the rates of the machines' clocks.
    #[default]
    Lease,
    /// By asking a majority, for every read. Depends on no clock.
    Majority,
}

/// The node's cluster, how it finds other nodes, and how it monitors its peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClusterConfig {
    /// Number of nodes without a cluster, this one included, that bootstrap a new cluster once they see one another.
    /// The same on every node. Default: 1: a single node is its own cluster.
    pub bootstrap_expect: u32,
    /// How addresses of other nodes are found. Default: `static`.
    pub discovery: DiscoveryKind,
    /// `HOST:PORT` of other nodes (`static`: their data ports; `gossip`: their gossip ports); this node's own may be among
    /// them. Default: none.
    pub seeds: Vec<String>,
    /// With `dns`: the name to resolve: `NAME:PORT` for its A and AAAA records, `_SERVICE._tcp.NAME` for SRV records, which
    /// bring the port. Default: empty.
    pub dns_name: String,
    /// With `gossip`: UDP address to gossip on. Default: `0.0.0.0:7401`.
    pub gossip_listen: SocketAddr,
    /// With `gossip`: `HOST:PORT` that other nodes send gossip to; empty: the listening address. Default: empty.
    pub gossip_address: String,
    /// With `gossip`: name of the gossip cluster; messages of nodes with another name are ignored. Default:
    /// `chronicle`.
    pub gossip_name: String,
    /// Failure domain (zone, rack); replicas of a partition are spread over zones. Empty: none. Default: empty.
    pub zone: String,
    /// Voters of the controller group: 1, 3, 5 or 7; all other nodes are learners. Default: 5.
    pub voters: u32,
    /// Replication factor of topics that do not set one; fewer replicas while the cluster has fewer nodes. Default: 3.
    pub replication_factor: u32,
    /// Interval between heartbeats of a node, in milliseconds. Default: 100.
    pub beat_interval_ms: u64,
    /// Time without a heartbeat after which a peer is suspected and other nodes take over its leaderships, in
    /// milliseconds. Shorter: faster fail-over, more false alarms on overloaded machines. Default: 500.
    pub suspect_after_ms: u64,
    /// Time after which a leader without responses from a majority stops accepting appends, and a follower without
    /// messages from a leader whose node seems alive starts an election, in milliseconds. Default: 2000.
    pub election_timeout_ms: u64,
    /// How a leader proves that it still leads before it answers a linearizable read or rejects an append for what its log
    /// contains: by its lease, or by asking a majority for every read, which does not depend on clocks and costs a round
    /// trip. Default: `lease`.
    pub linearizable_reads: LinearizableReads,
    /// Time after which the replicas of a dead node are moved to other nodes, in milliseconds. 0: never. Default: 0.
    pub replace_dead_after_ms: u64,
    /// Partitions whose replicas may move at the same time, in the whole cluster. Default: 4.
    pub moves_max: u32,
    /// Bytes per second that one node sends to replicas that catch up. 0: unlimited. Default: 0.
    pub fill_bytes_per_second: u64,
    /// Bytes of raft messages in flight to one peer. More: more throughput on links with high latency, more memory.
    /// Default: 16 MiB.
    pub peer_window_bytes: u64,
    /// Interval in which every sealed segment is read again and its hashes are verified, in milliseconds,
    /// approximately. 0: never. Default: 7 days.
    pub scrub_interval_ms: u64,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            bootstrap_expect: 1,
            discovery: DiscoveryKind::Static,
            seeds: Vec::new(),
            dns_name: String::new(),
            gossip_listen: SocketAddr::from(([0, 0, 0, 0], 7401)),
            gossip_address: String::new(),
            gossip_name: "chronicle".into(),
            zone: String::new(),
            voters: 5,
            replication_factor: 3,
            beat_interval_ms: 100,
            suspect_after_ms: 500,
            election_timeout_ms: 2000,
            linearizable_reads: LinearizableReads::Lease,
            replace_dead_after_ms: 0,
            moves_max: 4,
            fill_bytes_per_second: 0,
            peer_window_bytes: 16 << 20,
            scrub_interval_ms: 7 * 24 * 3600 * 1000,
        }
    }
}

/// Addresses that the node listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenersConfig {
    /// Address of gRPC and HTTP/JSON. Default: `127.0.0.1:7400`.
    pub data: SocketAddr,
    /// Address of health and metrics; no data. Default: `127.0.0.1:9644`.
    pub ops: SocketAddr,
}

impl Default for ListenersConfig {
    fn default() -> Self {
        Self { data: SocketAddr::from(([127, 0, 0, 1], 7400)), ops: SocketAddr::from(([127, 0, 0, 1], 9644)) }
    }
}

/// How a round of writes is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarrierKind {
    /// `syncfs` for rounds of many files when the data directory is a volume of its own, else `fdatasync`.
    #[default]
    Auto,
    /// `fdatasync` of each file on a small pool.
    Fdatasync,
    /// One `syncfs` of the volume; also waits for all other dirty data on it.
    Syncfs,
}

/// Storage of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StorageConfig {
    /// How a round of writes is made durable. Default: `auto`.
    pub barrier: BarrierKind,
    /// Threads that flush the files of one round in parallel. More: shorter rounds over many partitions. Default: 16.
    pub flush_threads: usize,
    /// One index entry per this many bytes of segment. Smaller: less scanning per read, larger index. Default: 4096.
    pub index_interval_bytes: u64,
    /// Bytes of recent entries kept in memory, all partitions together. Default: 64 MiB.
    pub tail_cache_bytes: u64,
    /// Bytes accepted and not flushed yet, all partitions together; above it appends wait. Default: 64 MiB.
    pub pending_bytes_max: u64,
    /// Free bytes of the volume below which appends are rejected, so that the node can still write its own state.
    /// Default: 64 MiB.
    pub reserve_bytes: u64,
    /// Time after which a write or flush that has not returned counts as stalled, in milliseconds: the node leads nothing
    /// then and is not ready. Default: 5000.
    pub stall_ms: u64,
    /// Longest wait at the start for another process to release the data directory, in milliseconds: the predecessor of
    /// a force-deleted pod may still run. 0: fail at once. Default: 0.
    pub lock_wait_ms: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            barrier: BarrierKind::Auto,
            flush_threads: 16,
            index_interval_bytes: 4096,
            tail_cache_bytes: 64 << 20,
            pending_bytes_max: 64 << 20,
            reserve_bytes: 64 << 20,
            stall_ms: 5000,
            lock_wait_ms: 0,
        }
    }
}

/// Lifecycle and limits of partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PartitionsConfig {
    /// Largest raft entry that the sequencer gathers, in bytes. Larger: more throughput, longer stalls. Default: 1 MiB.
    pub entry_bytes_max: usize,
    /// Entries proposed and not committed yet, per partition. Default: 4.
    pub entries_in_flight_max: usize,
    /// Bytes that wait in one partition's queue; above it appends wait. Default: 16 MiB.
    pub queue_bytes_max: usize,
    /// Idle time after which a partition becomes dormant, in milliseconds. Default: 60000.
    pub idle_ms: u64,
    /// Interval between checks for segments to delete, in milliseconds. Default: 30000.
    pub retention_check_ms: u64,
    /// Keys whose versions one partition stores for expected-version appends. Default: 10000000.
    pub versioned_keys_max: usize,
    /// Idempotent producers whose state one partition stores. Beyond that it forgets those that have been idle for longest, but
    /// none within `producer-keep-ms` after its last append: new producers are rejected instead. Default: 10000.
    pub producers_max: usize,
    /// Time for which the state of an idempotent producer is stored after its last append, at least, in milliseconds. A request
    /// that a producer repeats within this time is never stored twice. Default: 600000.
    pub producer_keep_ms: u64,
}

impl Default for PartitionsConfig {
    fn default() -> Self {
        Self {
            entry_bytes_max: 1 << 20,
            entries_in_flight_max: 4,
            queue_bytes_max: 16 << 20,
            idle_ms: 60_000,
            retention_check_ms: 30_000,
            versioned_keys_max: 10_000_000,
            producers_max: 10_000,
            producer_keep_ms: 600_000,
        }
    }
}

/// Whether the data port is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Not set: `chronicle node` does not start, `chronicle dev` uses `disabled`.
    #[default]
    Unset,
    /// Plaintext: any client that can connect can read and write everything, and can impersonate a node.
    Disabled,
    /// TLS for clients, mutual TLS between nodes.
    Enabled,
}

/// Whether clients of the data port must send a certificate. Nodes always must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAuth {
    /// The node does not request one: every client is anonymous.
    Off,
    /// A client with a certificate has the principal in it, a client without is anonymous. A certificate that cannot be
    /// verified is rejected.
    Optional,
    /// A client without a certificate is rejected.
    #[default]
    Required,
}

/// TLS of the data port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsConfig {
    /// Whether the data port is encrypted. Must be set for `chronicle node`. Default: `unset`.
    pub mode: TlsMode,
    /// The node's certificate and its chain to the CA, PEM. Default: empty.
    pub cert_file: PathBuf,
    /// Its private key, PEM. Default: empty.
    pub key_file: PathBuf,
    /// Certificates of the CAs that clients and other nodes are verified against, PEM. Several CAs during a rotation.
    /// Default: empty.
    pub ca_file: PathBuf,
    /// Whether clients must send a certificate. Default: `required`.
    pub client_auth: ClientAuth,
    /// Name that other nodes' certificates must be valid for; empty: the host in a node's address. For nodes whose
    /// addresses cannot be in a certificate. Default: empty.
    pub peer_server_name: String,
    /// Interval between checks of the files for changes, in milliseconds. Default: 10000.
    pub reload_ms: u64,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            mode: TlsMode::Unset,
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            client_auth: ClientAuth::Required,
            peer_server_name: String::new(),
            reload_ms: 10_000,
        }
    }
}

/// Which certificates are valid for nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PeersConfig {
    /// Patterns of which a URI, DNS or email SAN of a node's certificate must match one: `{name}` stands for the node's name,
    /// `{host}` for the host in its address, `*` for any run of characters without a slash. Empty: certificates of `chronicle
    /// cert` must name the node, others must be server certificates that are valid for its host. Default: none.
    pub allowed_names: Vec<String>,
}

/// TLS and authorization of the node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecurityConfig {
    /// TLS of the data port.
    pub tls: TlsConfig,
    /// Which certificates are valid for nodes.
    pub peers: PeersConfig,
    /// Rules that map the name in a client's certificate to its principal: `REGEX -> REPLACEMENT`; the first that
    /// matches the whole name applies. Default: none.
    pub principal_rules: Vec<String>,
    /// Authorization.
    pub authorization: AuthorizationConfig,
}

/// Authorization. The rules themselves are in the cluster's metadata: `chronicle acl`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AuthorizationConfig {
    /// Deny what no rule allows. When false, every client may do everything. The same on every node. Default: false.
    pub enabled: bool,
    /// Principals that may do everything, regardless of the rules, for example to add the first rules. Default: none.
    pub super_users: Vec<String>,
}

/// Limits of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitsConfig {
    /// Open connections on the data port; a further one receives `TOO_MANY_CONNECTIONS` and is closed. Default: 4096.
    pub connections_max: usize,
    /// Of these, from one address; a further one receives `TOO_MANY_CONNECTIONS` and is closed. Default: 1024.
    pub connections_per_address_max: usize,
    /// Largest request body or gRPC message, in bytes. Default: 8 MiB.
    pub request_bytes_max: usize,
    /// Bytes of requests being served, all connections together. Default: 256 MiB.
    pub in_flight_bytes_max: usize,
    /// Of these, of one principal; without a certificate: of one address. Default: 128 MiB.
    pub principal_bytes_max: usize,
    /// Of these, of one connection. Default: 64 MiB.
    pub connection_bytes_max: usize,
    /// Requests of one ProduceStream without a response. Default: 256.
    pub stream_window_max: usize,
    /// Largest response to one read, in bytes. Default: 4 MiB.
    pub fetch_bytes_max: usize,
    /// Longest wait of a long poll, in milliseconds. Default: 60000.
    pub wait_ms_max: u64,
    /// Time after which a stream is closed whose client reads nothing, in milliseconds. Default: 60000.
    pub slow_reader_ms: u64,
    /// Time after which a connection is closed that has not sent a complete request header, in milliseconds. Default:
    /// 10000.
    pub header_timeout_ms: u64,
    /// Time after which a request body or gRPC message that has begun is rejected when neither its end nor 64 KiB of it
    /// arrive, in milliseconds. Default: 30000.
    pub body_timeout_ms: u64,
    /// Time after which a connection without requests is closed, in milliseconds. 0: never. Default: 600000.
    pub idle_ms: u64,
    /// Longest time to finish accepted requests when stopping, in milliseconds. Default: 10000.
    pub shutdown_grace_ms: u64,
    /// Topics in the cluster. Default: 10000.
    pub topics_max: usize,
    /// Largest decompressed size of one batch, in bytes. Default: 64 MiB.
    pub decompressed_bytes_max: usize,
    /// Records of one batch. Default: 1000000.
    pub batch_records_max: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_address_max: 1024,
            request_bytes_max: 8 << 20,
            in_flight_bytes_max: 256 << 20,
            principal_bytes_max: 128 << 20,
            connection_bytes_max: 64 << 20,
            stream_window_max: 256,
            fetch_bytes_max: 4 << 20,
            wait_ms_max: 60_000,
            slow_reader_ms: 60_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            idle_ms: 600_000,
            shutdown_grace_ms: 10_000,
            topics_max: 10_000,
            decompressed_bytes_max: 64 << 20,
            batch_records_max: 1_000_000,
        }
    }
}

/// Format of the node's log lines (standard error).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LoggingConfig {
    /// Filter as of `tracing-subscriber`'s `EnvFilter`. Default: `info,openraft=error`.
    pub filter: String,
    /// Default: `text`.
    pub format: LogFormat,
    /// Bytes of the newest log lines kept in memory for `chronicle debug bundle`. 0: none. Default: 1 MiB.
    pub memory_bytes: usize,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { filter: "info,openraft=error".into(), format: LogFormat::Text, memory_bytes: 1 << 20 }
    }
}

/// Metrics with a cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetricsConfig {
    /// Topics with their own series; the others share the label value `other`. 0: all share it. Default: 100.
    pub topics_max: usize,
    /// Pairs of consumer group and topic with their own series; the others share the label value `other`. Default: 100.
    pub groups_max: usize,
    /// Interval between measurements of consumer group lag, in milliseconds. 0: never. Default: 15000.
    pub lag_interval_ms: u64,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { topics_max: 100, groups_max: 100, lag_interval_ms: 15_000 }
    }
}
