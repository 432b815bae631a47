//! One handle with everything that the handlers of all protocols need.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, Route};
use crate::config::Config;
use crate::groups::Groups;
use crate::model::{ApiError, Fetch, Fetched, Produce, Produced, Reason};
use crate::peers::PeerServer;
use crate::security::budget::{Budget, Hold, Shares};
use crate::security::{Caller, Tls};
use crate::telemetry::{ApiOperation, Listener, Metrics};

/// The topic of requests that name no topic.
pub(crate) const DEFAULT_TOPIC: &str = "default";

impl AsRef<ApiError> for ApiError {
    fn as_ref(&self) -> &ApiError {
        self
    }
}

/// The services behind the data port.
pub struct Services {
    /// The node's API.
    pub broker: Broker,
    /// The consumer groups that this node coordinates; shut down with the port.
    pub groups: Groups,
    /// Serves connections of other nodes.
    pub peers: PeerServer,
    /// Encrypts the port; `None`: the port is plaintext.
    pub tls: Option<Arc<Tls>>,
    /// Metrics of requests and connections.
    pub metrics: Metrics,
}

/// The node as handlers see it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) broker: Broker,
    pub(crate) groups: Groups,
    pub(crate) metrics: Metrics,
    /// All bytes in flight on this node.
    pub(crate) budget: Budget,
    /// Bytes in flight by holder: a principal or a client address.
    pub(crate) shares: Shares,
    /// Serves connections of other nodes.
    pub(crate) peers: PeerServer,
    /// Encrypts the data port; `None`: the port is plaintext.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Cancelled when the node begins to stop: streams and long polls end, accepted appends continue.
    pub(crate) stopping: CancellationToken,
}

impl Context {
    /// Creates the context of ports that serve `services`, and registers its metrics.
    pub(crate) fn new(services: Services) -> Self {
        let Services { broker, groups, peers, tls, metrics } = services;
        let limits = &broker.config().limits;
        let budget = Budget::new("limits.in-flight-bytes-max", limits.in_flight_bytes_max);
        let shares = Shares::new(budget.clone(), "limits.principal-bytes-max", limits.principal_bytes_max);
        let (gauge, live) = (budget.clone(), broker.live().clone());
        metrics.register_collector(move |samples| {
            let used = gauge.used() as f64;
            samples.gauge("in_flight_bytes", "Bytes of requests in service, and of responses not read yet", used);
            let help = "Limit of in_flight_bytes (limits.in-flight-bytes-max)";
            samples.gauge("in_flight_bytes_limit", help, gauge.max() as f64);
            let help = "Limit of connections_open (limits.connections-max)";
            samples.gauge("connections_limit", help, live.now().limits.connections_max as f64);
        });
        let (lagging, live) = (groups.clone(), broker.live().clone());
        metrics.register_collector(move |samples| {
            for lag in lagging.lags(live.now().metrics.groups_max) {
                let labels = [("group", lag.group), ("topic", lag.topic)];
                let help = "Records that a consumer group has not consumed, by the node that coordinates it";
                samples.gauge_of("group_lag_records", help, &labels, lag.records as f64);
                let help = "Age of the oldest record that a consumer group has not consumed";
                samples.gauge_of("group_lag_seconds", help, &labels, lag.age_ms as f64 / 1000.0);
            }
        });
        Self { broker, groups, metrics, budget, shares, peers, tls, stopping: CancellationToken::new() }
    }

    /// Returns the current configuration.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.broker.config()
    }

    /// Sets the limits of bytes in flight to the current configuration. Shares of open connections keep their limits.
    pub(crate) fn resize(&self) {
        let limits = &self.config().limits;
        self.budget.resize(limits.in_flight_bytes_max);
        self.shares.resize(limits.principal_bytes_max);
    }

    /// Runs one request and counts it.
    pub(crate) async fn observe<T, E: AsRef<ApiError>>(
        &self,
        listener: Listener,
        operation: ApiOperation,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let result = work.await;
        let error = result.as_ref().err().map(AsRef::as_ref);
        self.metrics.request(listener, operation, error.map(|error| error.reason), began.elapsed());
        if let Some(error) = error.filter(|error| error.reason == Reason::Internal) {
            tracing::error!(operation = operation.as_str(), %error, "request failed because of a bug");
        }
        result
    }

    /// Appends, and waits for the outcome.
    pub(crate) async fn produce(
        &self,
        listener: Listener,
        caller: &Caller,
        request: Produce,
        route: Route,
    ) -> Result<Produced, ApiError> {
        let produced = self.broker.for_caller(caller).produce(request, route).await?;
        self.metrics.appended(listener, produced.record_count.max(0) as usize);
        Ok(produced)
    }

    /// Reads, and charges the bytes read to the budget of the caller. The wait ends early when the node stops.
    pub(crate) async fn fetch(
        &self,
        caller: &Caller,
        mut request: Fetch,
        route: Route,
    ) -> Result<(Fetched, Hold), ApiError> {
        let limits = &self.config().limits;
        request.max_wait = request.max_wait.min(Duration::from_millis(limits.wait_ms_max));
        request.max_bytes = request.max_bytes.clamp(1, limits.fetch_bytes_max);
        let (broker, max_wait) = (self.broker.for_caller(caller), request.max_wait);
        // Safe to drop: a fetch changes no state.
        let fetched = tokio::select! {
            biased;
            fetched = broker.fetch(request, route) => fetched?,
            () = self.stopping.cancelled() => return Err(stopping()),
        };
        // In the protocols of this port, an empty read without a wait is an error; see docs/errors.md.
        if !fetched.has_advanced() && max_wait.is_zero() {
            return Err(self.broker.api_error(fetched.at_end()));
        }
        let hold = caller.share.hold(fetched.batches.iter().map(bytes::Bytes::len).sum())?;
        Ok((fetched, hold))
    }
}

/// Returns the error of requests that end because the node stops.
pub(crate) fn stopping() -> ApiError {
    ApiError::new(Reason::Unavailable, "the node is stopping")
}
