//! How a client connects, waits and retries.

use std::time::Duration;

use crate::connect::{Connector, tcp_connector};

/// How often and how fast a request is repeated: pauses double from `pause_min` to `pause_max`, each with full jitter in its
/// upper half.
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

/// How a client reaches the cluster. Made from an address: `ClientConfig::from("127.0.0.1:7400")`.
#[derive(Clone)]
pub struct ClientConfig {
    /// `HOST:PORT` of a node or of a service in front of several.
    pub server: String,
    /// Longest time that establishing a connection may take. Default: 5 s.
    pub connect_timeout: Duration,
    /// Deadline of a call with all its retries; a long poll may take its wait on top. Default: 30 s.
    pub request_timeout: Duration,
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
    /// The defaults, for this server.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
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

    /// With another way to open connections.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
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
    fn from(server: &str) -> Self {
        Self::new(server)
    }
}

impl From<String> for ClientConfig {
    fn from(server: String) -> Self {
        Self::new(server)
    }
}
