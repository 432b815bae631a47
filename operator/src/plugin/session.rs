//! Access for all commands: the API server with the rights of the user, the objects of a cluster, and its nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};

use super::error::{PluginError, causes, nearest};
use super::forward::forwarding;
use super::nodes::{GrpcNodeAccess, NodeAccess};
use crate::admin::{GrpcAdmin, Target};
use crate::api::ChronicleCluster;
use crate::build::{CLUSTER_LABEL, Settings, ordinal_of, validate};
use crate::controller::Context;
use crate::controller::cluster::operator_target;
use crate::telemetry::Metrics;

/// Flags of all commands: those of kubectl, and how to reach nodes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ConnectionFlags {
    /// Namespace of the cluster. Default: the namespace of the context.
    #[arg(long, short = 'n', global = true, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Context of the kubeconfig. Default: the current context.
    #[arg(long, global = true, value_name = "CONTEXT")]
    pub(super) context: Option<String>,
    /// Path of the kubeconfig. Default: $KUBECONFIG, then ~/.kube/config, then the service account of the pod.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Connect to the nodes by their DNS names instead of through port-forwards of the API server. Works only from inside the
    /// Kubernetes cluster.
    #[arg(long, global = true)]
    pub(super) direct: bool,
}

/// Creates the access to the nodes of a cluster from its namespace and name.
type NodeAccessFactory = Arc<dyn Fn(&str, &str) -> Arc<dyn NodeAccess> + Send + Sync>;

/// The API server, a namespace, and the access to nodes.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) namespace: String,
    reach: NodeAccessFactory,
}

impl Session {
    pub(super) async fn open(flags: &ConnectionFlags) -> Result<Self, PluginError> {
        let no_config = |error: &dyn std::error::Error| PluginError::NoKubeconfig(causes(error));
        let options = KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&flags.kubeconfig, &flags.context) {
            (Some(file), _) => {
                let named = |error: kube::config::KubeconfigError| {
                    PluginError::NoKubeconfig(format!("--kubeconfig {}: {}", file.display(), causes(&error)))
                };
                let kubeconfig = Kubeconfig::read_from(file).map_err(named)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| no_config(&error))?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|error| no_config(&error))?,
            (None, None) => Config::infer().await.map_err(|error| no_config(&error))?,
        };
        let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| no_config(&error))?;
        let (direct, to) = (flags.direct, client.clone());
        let reach: NodeAccessFactory = Arc::new(move |within, cluster| {
            let connector = match direct {
                true => chronicle_client::tcp_connector(),
                false => forwarding(to.clone(), within, cluster),
            };
            Arc::new(GrpcNodeAccess::new(connector))
        });
        Ok(Self { client, namespace, reach })
    }

    #[cfg(test)]
    pub(super) fn for_tests(client: Client, namespace: &str, nodes: Arc<dyn NodeAccess>) -> Self {
        Self { client, namespace: namespace.into(), reach: Arc::new(move |_, _| nodes.clone()) }
    }

    /// Returns a copy for another namespace.
    pub(super) fn within(&self, namespace: String) -> Self {
        Self { namespace, ..self.clone() }
    }

    /// Returns the access to the nodes of a cluster.
    pub(super) fn nodes(&self, cluster: &str) -> Arc<dyn NodeAccess> {
        (self.reach)(&self.namespace, cluster)
    }

    /// Returns a cluster by name. The error distinguishes a missing CRD from a missing cluster.
    pub(super) async fn cluster(&self, name: &str) -> Result<ChronicleCluster, PluginError> {
        let api: Api<ChronicleCluster> = Api::namespaced(self.client.clone(), &self.namespace);
        let error = match api.get(name).await {
            Ok(cluster) => return Ok(cluster),
            Err(error) => error,
        };
        if !crate::controller::is_not_found(&error) {
            return Err(PluginError::kube("get", CLUSTERS, Some(&self.namespace), error));
        }
        let known: Vec<String> = match self.clusters(false).await {
            Ok(all) => all.iter().map(ResourceExt::name_any).collect(),
            Err(PluginError::NoCrds) => return Err(PluginError::NoCrds),
            Err(_) => Vec::new(),
        };
        let (name, namespace) = (name.to_owned(), self.namespace.clone());
        Err(PluginError::NoCluster { nearest: nearest(&name, &known), name, namespace, known })
    }

    /// Returns the clusters of the namespace, or of all namespaces.
    pub(super) async fn clusters(&self, everywhere: bool) -> Result<Vec<ChronicleCluster>, PluginError> {
        let (api, namespace): (Api<ChronicleCluster>, _) = match everywhere {
            true => (Api::all(self.client.clone()), None),
            false => (Api::namespaced(self.client.clone(), &self.namespace), Some(self.namespace.as_str())),
        };
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            Err(error) if crate::controller::is_not_found(&error) => Err(PluginError::NoCrds),
            Err(error) => Err(PluginError::kube("list", CLUSTERS, namespace, error)),
        }
    }

    /// Returns the pods of a cluster by ordinal.
    pub(super) async fn pods(&self, cluster: &str) -> Result<BTreeMap<i32, Pod>, PluginError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let list = api.list(&of(cluster)).await;
        let list = list.map_err(|error| PluginError::kube("list", "pods", Some(&self.namespace), error))?;
        let numbered = list.items.into_iter().filter_map(|pod| Some((ordinal_of(cluster, &pod.name_any())?, pod)));
        Ok(numbered.collect())
    }

    /// Returns the claims of a cluster by ordinal.
    pub(super) async fn claims(&self, cluster: &str) -> Result<BTreeMap<i32, PersistentVolumeClaim>, PluginError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        let list = api.list(&of(cluster)).await;
        let list =
            list.map_err(|error| PluginError::kube("list", "persistentvolumeclaims", Some(&self.namespace), error))?;
        let numbered =
            list.items.into_iter().filter_map(|claim| Some((ordinal_of(cluster, &claim.name_any())?, claim)));
        Ok(numbered.collect())
    }

    /// Returns how to connect to the nodes, with the certificate of the operator, if the user may read it.
    pub(super) async fn target(&self, resource: &ChronicleCluster) -> Result<Target, PluginError> {
        let size = resource.status.as_ref().and_then(|status| status.size).unwrap_or(resource.spec.replicas);
        let invalid =
            |invalid: crate::build::InvalidSpec| PluginError::Refused(format!("the spec is invalid: {invalid}"));
        let cluster = validate(resource, size.max(1), true).map_err(invalid)?;
        // Used for reads only, and not for calls to nodes.
        let context = Context::new(
            self.client.clone(),
            Arc::new(GrpcAdmin::default()),
            Settings::default(),
            Metrics::new(),
            "kubectl-chronicle",
        );
        let target = operator_target(&context, &cluster, size.max(cluster.spec.replicas)).await;
        let target = target.map_err(|error| PluginError::reconcile(&self.namespace, error))?;
        target.ok_or_else(|| {
            let names = format!("{} and {}", cluster.node_secret(), cluster.operator_secret());
            PluginError::Nodes(format!("Secrets {names} are missing or incomplete"))
        })
    }
}

/// Name of the resource in RBAC rules.
pub(super) const CLUSTERS: &str = "chronicleclusters.chronicle.dev";

/// Returns list parameters that select the objects of a cluster.
pub(super) fn of(cluster: &str) -> ListParams {
    ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"))
}
