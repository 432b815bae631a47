//! `chronicle.v1.Cluster`: who serves what.

use chronicle_proto::v1 as proto;
use chronicle_proto::v1::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::convert;
use super::log::observe;
use crate::listeners::context::Context;
use crate::telemetry::Operation;

pub(super) struct ClusterService {
    context: Context,
}

impl ClusterService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn get_servers(
        &self,
        _request: Request<proto::GetServersRequest>,
    ) -> Result<Response<proto::GetServersResponse>, Status> {
        observe(&self.context, Operation::Servers, async {
            let (servers, cluster_id) = self.context.broker.servers().await?;
            Ok(Response::new(proto::GetServersResponse {
                servers: servers.into_iter().map(convert::server).collect(),
                cluster_id: cluster_id.to_string(),
            }))
        })
        .await
    }
}
