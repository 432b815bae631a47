//! Configuration: of a client, and of the producers, consumers and group members that it makes.
//!
//! Plain values with their defaults, nothing that runs. Names only `record.rs`, `connector.rs` and `tls.rs`.

use std::time::Duration;

use crate::connector::{Connector, tcp_connector};
use crate::record::{Compression, Position};
use crate::tls::{TlsConfig, tls_connector};

/// How fast a request is retried. Pauses double from `pause_min` to 100 ms, stay there for about a second (most failovers
/// take less), then double to `pause_max`. Jitter shortens each pause by up to half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// First pause. Default: 20 ms.
    pub pause_min: Duration,
    /// Longest pause. Default: 2 s.
    pub pause_max: Duration,
    /// Seed of the jitter, for simulations; `None`: from the operating system. Default: `None`.
    pub seed: Option<u64>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { pause_min: Duration::from_millis(20), pause_max: Duration::from_secs(2), seed: None }
    }
}

/// Which replicas of a partition the client reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFrom {
    /// Live followers in turn; the leader when there are none, or when one cannot serve the read. Spreads the load; new
    /// records may arrive a moment later than from the leader.
    #[default]
    Followers,
    /// The leader only.
    Leader,
}

/// How a client reaches the cluster. Made from an address, or several separated by commas:
/// `ClientConfig::from("10.0.0.1:7400,10.0.0.2:7400")`.
#[derive(Clone)]
pub struct ClientConfig {
    /// `HOST:PORT` of nodes, or of a service in front of several. The client asks these first, and falls back to them when
    /// it cannot reach a node at its advertised address.
    pub servers: Vec<String>,
    /// Longest time that establishing a connection may take. Default: 2 s, which leaves room for one lost packet.
    pub connect_timeout: Duration,
    /// Deadline of a call with all its retries; a long poll adds its wait. Default: 30 s.
    pub request_timeout: Duration,
    /// A node that leaves a request unanswered this long is suspected to be down. The client then asks another node who
    /// leads, and abandons a leader that was replaced. Default: 1 s.
    pub suspect_after: Duration,
    /// How often the client refreshes its metadata while it is used, besides when an error shows that it is out of date.
    /// Default: 30 s.
    pub metadata_max_age: Duration,
    /// Which replicas the client reads from. Default: followers.
    pub read_from: ReadFrom,
    /// How often the client sends a keep-alive ping while calls are open. It closes the connection when a ping is not
    /// answered for as long again. Default: 10 s.
    pub keep_alive: Duration,
    /// Largest response that the client accepts, in bytes. Default: 64 MiB.
    pub answer_bytes_max: usize,
    /// Pauses between retries.
    pub retry: RetryConfig,
    /// Opens connections. Default: TCP.
    pub connector: Connector,
}

impl ClientConfig {
    /// The defaults, for these servers: `HOST:PORT`, several separated by commas.
    pub fn new(servers: impl Into<String>) -> Self {
        Self::of(servers.into().split(',').map(|server| server.trim().to_owned()))
    }

    /// The defaults, for these servers, each `HOST:PORT`.
    pub fn of(servers: impl IntoIterator<Item = String>) -> Self {
        Self {
            servers: servers.into_iter().collect(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(30),
            suspect_after: Duration::from_secs(1),
            metadata_max_age: Duration::from_secs(30),
            read_from: ReadFrom::Followers,
            keep_alive: Duration::from_secs(10),
            answer_bytes_max: 64 << 20,
            retry: RetryConfig::default(),
            connector: tcp_connector(),
        }
    }

    /// Sets the deadline of calls.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets the silence after which a node is suspected to be down.
    #[must_use]
    pub fn suspect_after(mut self, silence: Duration) -> Self {
        self.suspect_after = silence;
        self
    }

    /// Sets which replicas are read.
    #[must_use]
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.read_from = read_from;
        self
    }

    /// Sets how connections are opened.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// Turns TLS on, on top of the connector that is set at this moment.
    #[must_use]
    pub fn tls(mut self, tls: TlsConfig) -> Self {
        self.connector = tls_connector(self.connector, tls);
        self
    }

    /// Sets the pauses between retries.
    #[must_use]
    pub fn retry(mut self, retry: RetryConfig) -> Self {
        self.retry = retry;
        self
    }
}

impl From<&str> for ClientConfig {
    fn from(servers: &str) -> Self {
        Self::new(servers)
    }
}

impl From<String> for ClientConfig {
    fn from(servers: String) -> Self {
        Self::new(servers)
    }
}

impl From<Vec<String>> for ClientConfig {
    fn from(servers: Vec<String>) -> Self {
        Self::of(servers)
    }
}

/// How a producer batches and waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerConfig {
    /// Send a producer id and sequence with each append, so that an append whose outcome is unknown can be repeated and each
    /// record is stored once. Without it such appends end as `OUTCOME_UNKNOWN`, and one request is in flight at a time, to
    /// keep the order. Default: true.
    pub idempotent: bool,
    /// Compression of the stored batches. Default: none.
    pub compression: Compression,
    /// Most records in one request. Default: 10000.
    pub batch_records_max: usize,
    /// Most bytes in one request, as stored. A larger record is sent alone; the node decides whether to accept it.
    /// Default: 1 MiB.
    pub batch_bytes_max: usize,
    /// How long to wait for more records before sending a request that is not full. At zero, requests still grow while
    /// `in_flight_max` requests are in flight. Default: 0.
    pub linger: Duration,
    /// Most requests that are sent and not answered yet. A node must remember as many per producer to recognise
    /// duplicates; the Kafka protocol promises 5. Default: 5.
    pub in_flight_max: usize,
    /// Largest item (one `send`) in bytes. The producer refuses more, because a node ends the whole stream when it receives
    /// a message above its limit (`limits.request-bytes-max`, 8 MiB by default). Default: 8 MiB less 64 KiB.
    pub item_bytes_max: usize,
    /// Most bytes of records that are accepted and not answered yet; above it `send` waits. Default: 32 MiB.
    pub buffer_bytes_max: usize,
    /// How long a record may stay unanswered, retries included. Default: 60 s.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            idempotent: true,
            compression: Compression::None,
            batch_records_max: 10_000,
            batch_bytes_max: 1 << 20,
            linger: Duration::ZERO,
            in_flight_max: 5,
            item_bytes_max: (8 << 20) - (64 << 10),
            buffer_bytes_max: 32 << 20,
            delivery_timeout: Duration::from_secs(60),
        }
    }
}

/// How to read a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Where to start. Default: earliest.
    pub from: Position,
    /// Stop before this offset (exclusive); `None`: follow the log for ever. Default: `None`.
    pub until_offset: Option<i64>,
    /// Soft limit on the bytes of records in one response of the node; 0: the node's default. Default: 0.
    pub max_bytes: u32,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self { from: Position::Earliest, until_offset: None, max_bytes: 0 }
    }
}

impl ConsumerConfig {
    /// From this position on, for ever.
    pub fn from(position: Position) -> Self {
        Self { from: position, ..Self::default() }
    }

    /// From this offset (inclusive) on, for ever.
    pub fn from_offset(offset: i64) -> Self {
        Self::from(Position::Offset(offset))
    }

    /// Stopping before this offset (exclusive).
    #[must_use]
    pub fn until(mut self, offset: i64) -> Self {
        self.until_offset = Some(offset);
        self
    }
}

/// Where a group starts in a partition for which it has no committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupStart {
    /// At the first record.
    #[default]
    Earliest,
    /// At the end: only records that are appended from then on.
    Latest,
}

impl GroupStart {
    pub(crate) fn position(self) -> Position {
        match self {
            Self::Earliest => Position::Earliest,
            Self::Latest => Position::Latest,
        }
    }
}

/// How to read as a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// Name of the group.
    pub group: String,
    /// Topics to read. Members of a group may read different ones.
    pub topics: Vec<String>,
    /// Where a partition starts that has no committed offset, or whose committed offset retention has passed.
    /// Default: earliest.
    pub start: GroupStart,
    /// Name of this client, shown by `chronicle group describe`. Default: empty.
    pub client_name: String,
    /// The coordinator drops the member when it receives no heartbeat from it for this long: 1 s to 10 min. Default: 30 s.
    pub session_timeout: Duration,
    /// How often finished records are committed automatically; `None`: only by
    /// [`GroupConsumer::commit`](crate::GroupConsumer::commit). Default: 5 s.
    pub auto_commit: Option<Duration>,
    /// How long the next owner of a partition waits for the caller to finish its current record. After that the partition
    /// is given away, and the record may be read twice. Default: 30 s.
    pub revoke_timeout: Duration,
    /// Soft limit on the bytes of records in one response of a node, for each partition; 0: the node's default. Default: 0.
    pub max_bytes: u32,
}

impl GroupConfig {
    /// The defaults, for this group and these topics.
    pub fn new<T: Into<String>>(group: impl Into<String>, topics: impl IntoIterator<Item = T>) -> Self {
        Self {
            group: group.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            start: GroupStart::default(),
            client_name: String::new(),
            session_timeout: Duration::from_secs(30),
            auto_commit: Some(Duration::from_secs(5)),
            revoke_timeout: Duration::from_secs(30),
            max_bytes: 0,
        }
    }
}
