//! [`Admin`] over gRPC. Quorum reads query every node directly; commands go through the client, which finds the leader.
//!
//! Invariants:
//! - Every call opens new connections, so that it uses the current certificates.
//! - Every call has a time limit.

use std::collections::HashMap;
use std::time::Duration;

use chronicle_client::v1::admin_client::AdminClient;
use chronicle_client::v1::cluster_client::ClusterClient;
use chronicle_client::{
    Client, ClientConfig, ClientError, Connector, ErrorKind, Pem, TlsConfig, tcp_connector, tls_connector, v1,
};
use futures::StreamExt;
use futures::future::join_all;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::{Admin, AdminError, AdminResult, NodeAnswer, Target, cluster_view};
use crate::plan::{CatchUp, ClusterView};

/// Time limit of a comparison of all topics.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of a response, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Records that a replica may lag and still count as caught up: appends continue during the comparison.
const RECORDS_BEHIND_MAX: i64 = 1_000;

/// Time limits and concurrency of calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallLimits {
    /// Connect timeout of commands.
    pub(crate) connect: Duration,
    /// Time limit of the status of one node, including the connection. All nodes, at most 50, are queried concurrently.
    pub(crate) status: Duration,
    /// Time limit of a command, including retries.
    pub(crate) command: Duration,
    /// Maximum number of topics that are compared concurrently.
    pub(crate) topics: usize,
}

/// Calls nodes over gRPC.
#[derive(Clone)]
pub struct GrpcAdmin {
    connector: Connector,
    limits: CallLimits,
}

impl Default for GrpcAdmin {
    /// Over TCP, to the addresses of the pods.
    fn default() -> Self {
        let [connect, status, command] = [2, 3, 15].map(Duration::from_secs);
        Self::over(tcp_connector(), CallLimits { connect, status, command, topics: 16 })
    }
}

impl GrpcAdmin {
    /// Over connections of `connector`, with TLS on top where the target has TLS material.
    pub(crate) fn over(connector: Connector, limits: CallLimits) -> Self {
        Self { connector, limits }
    }

    pub(crate) fn client(&self, target: &Target) -> Result<Client, AdminError> {
        let config = ClientConfig::of(target.nodes.iter().map(|(_, address)| address.clone()));
        let mut config = config.request_timeout(self.limits.command).connector(self.connector(target));
        config.connect_timeout = self.limits.connect;
        Client::connect(config).map_err(admin_error)
    }

    fn connector(&self, target: &Target) -> Connector {
        match &target.tls {
            None => self.connector.clone(),
            Some(tls) => {
                let identity = (Pem::Text(tls.certificate.clone()), Pem::Text(tls.key.clone()));
                let config = TlsConfig::new(Pem::Text(tls.ca.clone())).identity(identity.0, identity.1);
                tls_connector(self.connector.clone(), config)
            }
        }
    }

    /// Connects to exactly this node.
    async fn channel(&self, target: &Target, address: &str) -> Result<Channel, String> {
        let connect = self.connector(target);
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let endpoint = endpoint.connect_timeout(self.limits.status).timeout(self.limits.command);
        let address = address.to_owned();
        let service = service_fn(move |_: Uri| {
            let (connect, address) = (connect.clone(), address.clone());
            async move { connect(address).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(service).await.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            cause.to_string()
        })
    }

    async fn status(&self, target: &Target, address: &str) -> Result<v1::GetStatusResponse, String> {
        let ask = async {
            let channel = self.channel(target, address).await?;
            let mut cluster = ClusterClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let answer = cluster.get_status(v1::GetStatusRequest {}).await;
            answer.map(tonic::Response::into_inner).map_err(|status| ClientError::from(status).to_string())
        };
        match timeout(self.limits.status, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no response within {} ms", self.limits.status.as_millis())),
        }
    }

    /// Returns the state of this node's own replica of each partition of a topic.
    async fn describe(channel: Channel, topic: &str) -> Result<Vec<v1::PartitionDescription>, String> {
        let mut admin = AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = admin.describe_topic(v1::DescribeTopicRequest { name: topic.to_owned() }).await;
        answer.map(|answer| answer.into_inner().partitions).map_err(|status| ClientError::from(status).to_string())
    }

    async fn compare(&self, target: &Target, nodes: &[String]) -> Result<CatchUp, AdminError> {
        let mut channels = Vec::new();
        for (name, address) in &target.nodes {
            match self.channel(target, address).await {
                Ok(channel) => channels.push((name.clone(), channel)),
                Err(why) if nodes.contains(name) => return Err(AdminError::Failed(format!("{name}: {why}"))),
                // A node that does not respond is left out; the planner knows that it is not alive.
                Err(_) => {}
            }
        }
        let topics = self.client(target)?.list_topics().await.map_err(admin_error)?;
        let mut compared = futures::stream::iter(topics)
            .map(|topic| {
                let channels = channels.clone();
                async move { Self::compare_topic(&channels, nodes, &topic.name).await }
            })
            .buffer_unordered(self.limits.topics);
        let (mut partitions, mut first) = (0, None);
        while let Some(behind) = compared.next().await {
            for why in behind.map_err(AdminError::Failed)? {
                partitions += 1;
                first = first.or(Some(why));
            }
        }
        Ok(match first {
            None => CatchUp::Done,
            Some(why) => CatchUp::Behind { why: format!("{partitions} partitions, for example {why}") },
        })
    }

    async fn compare_topic(
        channels: &[(String, Channel)],
        nodes: &[String],
        topic: &str,
    ) -> Result<Vec<String>, String> {
        let mut ends: HashMap<i32, i64> = HashMap::new();
        for (_, channel) in channels {
            for partition in Self::describe(channel.clone(), topic).await? {
                if matches!(partition.state.as_str(), "active" | "dormant") {
                    let end = ends.entry(partition.partition).or_default();
                    *end = partition.next.max(*end);
                }
            }
        }
        // Query these nodes again: the first round took time in which they may have caught up.
        let mut behind = Vec::new();
        for (name, channel) in channels.iter().filter(|(name, _)| nodes.contains(name)) {
            for partition in Self::describe(channel.clone(), topic).await? {
                let replica = format!("{topic}/{} on {name}", partition.partition);
                let end = ends.get(&partition.partition).copied().unwrap_or_default();
                let missing = end - partition.next;
                match partition.state.as_str() {
                    "elsewhere" => {}
                    "active" | "dormant" if missing <= RECORDS_BEHIND_MAX => {}
                    "active" | "dormant" => behind.push(format!("{replica} ({missing} records)")),
                    other => behind.push(format!("{replica} ({other})")),
                }
            }
        }
        Ok(behind)
    }
}

pub(crate) fn admin_error(error: ClientError) -> AdminError {
    match error.kind {
        ErrorKind::Rejected => AdminError::Refused { reason: error.reason, message: error.message },
        _ => AdminError::Failed(error.to_string()),
    }
}

impl Admin for GrpcAdmin {
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView> {
        Box::pin(async move {
            let ask = |(name, address): &'a (String, String)| async move {
                let answer: NodeAnswer = (name.clone(), self.status(target, address).await);
                answer
            };
            cluster_view(&join_all(target.nodes.iter().map(ask)).await)
        })
    }

    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp> {
        Box::pin(async move {
            match timeout(CATCH_UP_TIMEOUT, self.compare(target, nodes)).await {
                Ok(compared) => compared,
                Err(_) => {
                    Err(AdminError::Failed(format!("comparing the replicas timed out after {CATCH_UP_TIMEOUT:?}")))
                }
            }
        })
    }

    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Box::pin(async move { self.client(target)?.drain(node_id).await.map(drop).map_err(admin_error) })
    }

    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Box::pin(async move { self.client(target)?.undrain(node_id).await.map(drop).map_err(admin_error) })
    }

    fn decommission<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Box::pin(async move { self.client(target)?.decommission(node_id).await.map(drop).map_err(admin_error) })
    }

    fn topic<'a>(&'a self, target: &'a Target, name: &'a str) -> AdminResult<'a, Option<v1::Topic>> {
        Box::pin(async move {
            match self.client(target)?.describe_topic(name).await {
                Ok(description) => Ok(description.topic),
                Err(error) if error.reason == "UNKNOWN_TOPIC" => Ok(None),
                Err(error) => Err(admin_error(error)),
            }
        })
    }

    fn create_topic<'a>(&'a self, target: &'a Target, request: v1::CreateTopicRequest) -> AdminResult<'a, v1::Topic> {
        Box::pin(async move {
            let request = v1::CreateTopicRequest { if_not_exists: true, ..request };
            let answer = self.client(target)?.create_topic(request).await.map_err(admin_error)?;
            answer.topic.ok_or_else(|| AdminError::Failed("the response of the node has no topic".into()))
        })
    }

    fn alter_topic<'a>(&'a self, target: &'a Target, request: v1::AlterTopicRequest) -> AdminResult<'a, v1::Topic> {
        Box::pin(async move {
            let answer = self.client(target)?.alter_topic(request).await.map_err(admin_error)?;
            answer.topic.ok_or_else(|| AdminError::Failed("the response of the node has no topic".into()))
        })
    }

    fn delete_topic<'a>(&'a self, target: &'a Target, name: &'a str) -> AdminResult<'a, ()> {
        Box::pin(async move {
            match self.client(target)?.delete_topic(name).await {
                Err(error) if error.reason != "UNKNOWN_TOPIC" => Err(admin_error(error)),
                _ => Ok(()),
            }
        })
    }

    fn rules<'a>(&'a self, target: &'a Target, principal: &'a str) -> AdminResult<'a, Vec<v1::Acl>> {
        Box::pin(async move {
            let filter = v1::AclFilter { principal: Some(principal.to_owned()), ..v1::AclFilter::default() };
            self.client(target)?.list_acls(filter).await.map_err(admin_error)
        })
    }

    fn add_rules<'a>(&'a self, target: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()> {
        Box::pin(async move { self.client(target)?.create_acls(rules).await.map(drop).map_err(admin_error) })
    }

    fn remove_rules<'a>(&'a self, target: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()> {
        Box::pin(async move {
            let exactly = |rule: v1::Acl| v1::AclFilter {
                principal: Some(rule.principal),
                resource: rule.resource,
                pattern: rule.pattern,
                name: Some(rule.name),
                operation: rule.operation,
                effect: rule.effect,
            };
            let filters = rules.into_iter().map(exactly).collect();
            self.client(target)?.delete_acls(filters).await.map(drop).map_err(admin_error)
        })
    }

    fn quota<'a>(&'a self, target: &'a Target, principal: &'a str) -> AdminResult<'a, Option<v1::Quota>> {
        Box::pin(async move {
            let quotas = self.client(target)?.list_quotas().await.map_err(admin_error)?.quotas;
            Ok(quotas.into_iter().find(|quota| quota.principal == principal).and_then(|quota| quota.quota))
        })
    }

    fn set_quota<'a>(
        &'a self,
        target: &'a Target,
        principal: &'a str,
        quota: Option<v1::Quota>,
    ) -> AdminResult<'a, ()> {
        Box::pin(async move {
            let client = self.client(target)?;
            let done = match quota {
                Some(quota) => client.set_quota(Some(principal.to_owned()), quota).await,
                None => client.delete_quota(Some(principal.to_owned())).await,
            };
            done.map_err(admin_error)
        })
    }
}
