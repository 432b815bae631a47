//! Calls to nodes for the plugin: a subset of [`Admin`] and diagnostics, over a given connector.

use std::collections::BTreeMap;
use std::time::Duration;

use chronicle_client::{ClientError, Connector, v1};
use futures::TryStreamExt;
use tokio::time::timeout;

use crate::admin::{Admin, AdminError, AdminResult, CallLimits, GrpcAdmin, Target, admin_error};
use crate::plan::{CatchUp, ClusterView};

/// Time limit for the diagnostics of a node.
const DIAGNOSTICS_TIMEOUT: Duration = Duration::from_secs(60);
/// Contents of files by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Calls to the nodes of a cluster.
pub(super) trait NodeAccess: Send + Sync + 'static {
    /// Returns the state of the cluster, confirmed by a majority of the voters.
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView>;
    /// Compares the replicas on these nodes with those on all nodes.
    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp>;
    /// Starts to transfer the leadership of a node (UUID) to other nodes.
    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Allows a node (UUID) to lead again.
    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Returns the diagnostics of the node at an address. `bytes_max` limits its log; all files have at most four times as many bytes.
    fn diagnostics<'a>(&'a self, target: &'a Target, address: &'a str, bytes_max: usize) -> AdminResult<'a, Files>;
}

/// Calls nodes over gRPC.
pub(super) struct GrpcNodeAccess(GrpcAdmin);

impl GrpcNodeAccess {
    pub(super) fn new(connector: Connector) -> Self {
        // A port-forward takes several trips through the API server.
        let [connect, status, command] = [5, 5, 20].map(Duration::from_secs);
        Self(GrpcAdmin::over(connector, CallLimits { connect, status, command, topics: 8 }))
    }

    async fn files(&self, target: &Target, address: &str, bytes_max: usize) -> Result<Files, AdminError> {
        let request = v1::GetDiagnosticsRequest { log_bytes_max: bytes_max as u64 };
        let mut parts = self.0.client(target)?.diagnostics(address, request).await.map_err(admin_error)?;
        let mut files = Files::new();
        let mut bytes = 0;
        while let Some(part) = parts.try_next().await.map_err(|status| admin_error(ClientError::from(status)))? {
            bytes += part.data.len();
            if bytes > bytes_max.saturating_mul(4) {
                return Err(AdminError::Failed(format!("the diagnostics of the node exceed {bytes} bytes")));
            }
            files.entry(part.file).or_default().extend_from_slice(&part.data);
        }
        Ok(files)
    }
}

impl NodeAccess for GrpcNodeAccess {
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView> {
        Admin::observe(&self.0, target)
    }

    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp> {
        Admin::catch_up(&self.0, target, nodes)
    }

    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Admin::drain(&self.0, target, node_id)
    }

    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Admin::undrain(&self.0, target, node_id)
    }

    fn diagnostics<'a>(&'a self, target: &'a Target, address: &'a str, bytes_max: usize) -> AdminResult<'a, Files> {
        Box::pin(async move {
            match timeout(DIAGNOSTICS_TIMEOUT, self.files(target, address, bytes_max)).await {
                Ok(files) => files,
                Err(_) => Err(AdminError::Failed(format!("no response within {} s", DIAGNOSTICS_TIMEOUT.as_secs()))),
            }
        })
    }
}
