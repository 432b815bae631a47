//! How a client connects, waits and retries.

use std::time::Duration;

use crate::connect::{Connector, tcp_connector};
use crate::tls::{TlsConfig, tls_connector};

/// How often and how fast a request is repeated: pauses double from `pause_min` to 100 ms, stay there for about a second (a
/// fail-over takes less), then double to `pause_max`; each with full jitter in its upper half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// First pause. Default: 20 ms.
    pub pause_min: Duration,
    /// Longest pause. Default: 2 s.
    pub pause_max: Duration,
    /// Seed of the jitter, for simulations; `None`: from the system. Default: `None`.
    pub seed: Option<u64>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { pause_min: Duration::from_millis(20), pause_max: Duration::from_secs(2), seed: None }
    }
}

/// Which replicas of a partition are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFrom {
    /// Live followers in turn; the leader when there are none or one cannot help. Spreads the load; what is read may come a
    /// moment later than from the leader.
    #[default]
    Followers,
    /// The leader only.
    Leader,
}

/// How a client reaches the cluster. Made from an address, or several with commas between them:
/// `ClientConfig::from("10.0.0.1:7400,10.0.0.2:7400")`.
#[derive(Clone)]
pub struct ClientConfig {
    /// `HOST:PORT` of nodes, or of a service in front of several: where the client asks first, and falls back to when it
    /// cannot reach a node at the address that the cluster gives for it.
    pub servers: Vec<String>,
    /// Longest time that establishing a connection may take. Default: 2 s, which leaves room for one lost packet.
    pub connect_timeout: Duration,
    /// Deadline of a call with all its retries; a long poll may take its wait on top. Default: 30 s.
    pub request_timeout: Duration,
    /// A node that leaves a request unanswered this long is suspected: another node is asked who leads, and a leader that
    /// was replaced is given up. Default: 1 s.
    pub suspect_after: Duration,
    /// While the client is used, it asks this often where partitions are, besides when something tells it that it is wrong.
    /// Default: 30 s.
    pub metadata_max_age: Duration,
    /// Which replicas are read. Default: followers.
    pub read_from: ReadFrom,
    /// A connection is checked this often while calls are open, and given up when the check is not answered for as
    /// long again. Default: 10 s.
    pub keep_alive: Duration,
    /// Largest answer that is accepted, in bytes. Default: 64 MiB.
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

    /// With another deadline for calls.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// With another time after which a silent node is suspected.
    #[must_use]
    pub fn suspect_after(mut self, silence: Duration) -> Self {
        self.suspect_after = silence;
        self
    }

    /// Reading from other replicas.
    #[must_use]
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.read_from = read_from;
        self
    }

    /// With another way to open connections.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// Encrypted: on top of the connector that it has at this moment.
    #[must_use]
    pub fn tls(mut self, tls: TlsConfig) -> Self {
        self.connector = tls_connector(self.connector, tls);
        self
    }

    /// With other pauses between retries.
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
