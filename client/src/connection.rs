//! The connection to a cluster: what consumers, producers, group members and the client share.
//!
//! Promise: a call through it ends within its deadline, is retried where that is safe, and says in its error whether a node
//! took the request.
//!
//! Stands on `resolver.rs`, `attempts.rs` and `retry.rs`. It does not name consumers, producers, groups or the client: they
//! are above it, and each holds a clone.

use std::sync::Arc;
use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::log_client::LogClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::attempts::Attempts;
use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::record::Partition;
use crate::resolver::{Resolver, Target};
use crate::retry::{Plan, Repeat, with_retries};
use crate::trace::{self, Interceptor};

/// A connection to a cluster. Cheap to clone; clones share the channels and the metadata.
#[derive(Clone)]
pub(crate) struct Connection {
    config: Arc<ClientConfig>,
    resolver: Resolver,
}

impl Connection {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when a configured address is not `HOST:PORT`, or when there is none.
    pub(crate) fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let config = Arc::new(config);
        Ok(Self { resolver: Resolver::new(config.clone())?, config })
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// For a caller that opens streams and retries by itself.
    pub(crate) fn attempts(&self, target: Target) -> Attempts {
        Attempts::new(self.resolver.clone(), target, self.config.retry)
    }

    /// The channel to one node.
    pub(crate) fn channel_to(&self, address: &str) -> Channel {
        self.resolver.route_to(&address.into()).channel()
    }

    /// The stub of `chronicle.v1.Log`.
    pub(crate) fn log(&self, channel: Channel) -> LogClient<InterceptedService<Channel, Interceptor>> {
        // The node limits the size of requests; the client adds no limit of its own.
        LogClient::with_interceptor(channel, trace::with_active_span as Interceptor)
            .max_decoding_message_size(self.config.answer_bytes_max)
            .max_encoding_message_size(usize::MAX)
    }

    /// Offsets of a partition, from its leader: earliest, next, and the first at or after a time (milliseconds since the
    /// Unix epoch).
    pub(crate) async fn list_offsets(
        &self,
        partition: &Partition,
        timestamp_ms: Option<i64>,
    ) -> Result<v1::ListOffsetsResponse, ClientError> {
        let request = v1::ListOffsetsRequest { partition: Some(partition.into()), timestamp_ms };
        self.call(Target::Leader(partition.clone()), Repeat::Always, false, Duration::ZERO, |channel| {
            let (mut log, request) = (self.log(channel), request.clone());
            async move { log.list_offsets(request).await }
        })
        .await
    }

    /// A new producer id.
    pub(crate) async fn init_producer(&self, deadline: Duration) -> Result<v1::InitProducerResponse, ClientError> {
        self.call_within(deadline, Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let mut log = self.log(channel);
            async move { log.init_producer(v1::InitProducerRequest {}).await }
        })
        .await
    }

    /// Whether the leader has the offset `asked`, which a node refused with `error` as out of range. Then that node was behind,
    /// and not the leader that it was taken for. An offset at the very end of the node's log is not in doubt.
    pub(crate) async fn is_in_range_at_leader(
        &self,
        partition: &Partition,
        asked: i64,
        error: &ClientError,
    ) -> Result<bool, ClientError> {
        if error.reason != "OFFSET_OUT_OF_RANGE" || error.number("next") == Some(asked) {
            return Ok(false);
        }
        let offsets = self.list_offsets(partition, None).await?;
        Ok((offsets.earliest..=offsets.next).contains(&asked))
    }

    /// Makes a call, with retries, to the nodes that can take it. `mutates`: without an answer its outcome is unknown. `wait`:
    /// how long the node may wait on purpose before it answers, on top of the request timeout.
    pub(crate) async fn call<T, F>(
        &self,
        target: Target,
        repeat: Repeat,
        mutates: bool,
        wait: Duration,
        attempt: impl FnMut(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = self.config.request_timeout + wait;
        self.call_within(deadline, target, repeat, mutates, wait, attempt).await
    }

    /// As [`Self::call`], with another deadline.
    async fn call_within<T, F>(
        &self,
        deadline: Duration,
        target: Target,
        repeat: Repeat,
        mutates: bool,
        wait: Duration,
        mut attempt: impl FnMut(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        // A slow leader stays the only choice until another node leads.
        let is_patient = mutates || matches!(target, Target::Leader(_));
        let plan = Plan {
            target,
            repeat,
            mutates,
            deadline,
            patience: (!is_patient).then(|| self.config.suspect_after + wait),
        };
        with_retries(&self.resolver, self.config.retry, plan, |channel| {
            let answer = attempt(channel);
            async move { answer.await.map(tonic::Response::into_inner) }
        })
        .await
    }
}
