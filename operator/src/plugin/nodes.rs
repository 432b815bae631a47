//! The nodes, asked as the operator asks them, over a connector of the plugin's.

use std::collections::BTreeMap;
use std::time::Duration;

use chronicle_client::{ClientError, Connector, v1};
use futures::TryStreamExt;
use tokio::time::timeout;

use crate::admin::{Admin, AdminError, AdminResult, Nodes, Patience, Target, refused};
use crate::plan::{CatchUp, ClusterView};

/// Longest wait for all that a node knows of itself.
const DIAGNOSTICS_TIMEOUT: Duration = Duration::from_secs(60);
/// Files by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What the plugin asks of nodes.
pub(super) trait Ask: Send + Sync + 'static {
    /// What a majority of the cluster says about itself.
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView>;
    /// Whether these nodes have all records that any node has.
    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp>;
    /// Has a node (UUID) hand over what it leads.
    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Lets a node (UUID) lead again.
    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// What a node at an address knows of itself: at most so many bytes of its log, and of everything.
    fn diagnostics<'a>(&'a self, target: &'a Target, address: &'a str, bytes_max: usize) -> AdminResult<'a, Files>;
}

/// Nodes behind a connector.
pub(super) struct Reach(Nodes);

impl Reach {
    pub(super) fn new(connector: Connector) -> Self {
        // A port-forward takes several trips through the API server.
        let [connect, status, command] = [5, 5, 20].map(Duration::from_secs);
        Self(Nodes::over(connector, Patience { connect, status, command, topics: 8 }))
    }

    async fn files(&self, target: &Target, address: &str, bytes_max: usize) -> Result<Files, AdminError> {
        let request = v1::GetDiagnosticsRequest { log_bytes_max: bytes_max as u64 };
        let mut parts = self.0.client(target)?.diagnostics(address, request).await.map_err(refused)?;
        let mut files = Files::new();
        let mut bytes = 0;
        while let Some(part) = parts.try_next().await.map_err(|status| refused(ClientError::from(status)))? {
            bytes += part.data.len();
            if bytes > bytes_max.saturating_mul(4) {
                return Err(AdminError::Failed(format!("the diagnostics of the node exceed {bytes} bytes")));
            }
            files.entry(part.file).or_default().extend_from_slice(&part.data);
        }
        Ok(files)
    }
}

impl Ask for Reach {
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
