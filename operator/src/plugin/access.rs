//! Access for all commands: the API server with the rights of the user, the objects of a cluster, and its nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};

use super::error::{Failure, causes, nearest};
use super::forward::forwarding;
use super::nodes::{Ask, Reach};
use crate::admin::{Nodes, Target};
use crate::api::ChronicleCluster;
use crate::build::{CLUSTER_LABEL, Settings, ordinal_of, validate};
use crate::controller::Context;
use crate::controller::cluster::operator_target;
use crate::process::Metrics;

/// Flags of all commands: those of kubectl, and how to reach nodes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Flags {
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
type Reaching = Arc<dyn Fn(&str, &str) -> Arc<dyn Ask> + Send + Sync>;

/// The API server, a namespace, and the access to nodes.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) client: Client,
    pub(super) namespace: String,
    reach: Reaching,
}

impl Access {
    pub(super) async fn open(flags: &Flags) -> Result<Self, Failure> {
        let no_way = |error: &dyn std::error::Error| Failure::NoWay(causes(error));
        let options = KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&flags.kubeconfig, &flags.context) {
            (Some(file), _) => {
                let named = |error: kube::config::KubeconfigError| {
                    Failure::NoWay(format!("--kubeconfig {}: {}", file.display(), causes(&error)))
                };
                let kubeconfig = Kubeconfig::read_from(file).map_err(named)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| no_way(&error))?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|error| no_way(&error))?,
            (None, None) => Config::infer().await.map_err(|error| no_way(&error))?,
        };
        let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| no_way(&error))?;
        let (direct, to) = (flags.direct, client.clone());
        let reach: Reaching = Arc::new(move |within, cluster| {
            let connector = match direct {
                true => chronicle_client::tcp_connector(),
                false => forwarding(to.clone(), within, cluster),
            };
            Arc::new(Reach::new(connector))
        });
        Ok(Self { client, namespace, reach })
    }

    #[cfg(test)]
    pub(super) fn for_tests(client: Client, namespace: &str, ask: Arc<dyn Ask>) -> Self {
        Self { client, namespace: namespace.into(), reach: Arc::new(move |_, _| ask.clone()) }
    }

    /// Returns a copy for another namespace.
    pub(super) fn within(&self, namespace: String) -> Self {
        Self { namespace, ..self.clone() }
    }

    /// Returns the access to the nodes of a cluster.
    pub(super) fn nodes(&self, cluster: &str) -> Arc<dyn Ask> {
        (self.reach)(&self.namespace, cluster)
    }

    /// Returns a cluster by name. The error distinguishes a missing CRD from a missing cluster.
    pub(super) async fn cluster(&self, name: &str) -> Result<ChronicleCluster, Failure> {
        let api: Api<ChronicleCluster> = Api::namespaced(self.client.clone(), &self.namespace);
        let error = match api.get(name).await {
            Ok(cluster) => return Ok(cluster),
            Err(error) => error,
        };
        if !crate::controller::is_not_found(&error) {
            return Err(Failure::kube("get", CLUSTERS, Some(&self.namespace), error));
        }
        let known: Vec<String> = match self.clusters(false).await {
            Ok(all) => all.iter().map(ResourceExt::name_any).collect(),
            Err(Failure::NoDefinitions) => return Err(Failure::NoDefinitions),
            Err(_) => Vec::new(),
        };
        let (name, namespace) = (name.to_owned(), self.namespace.clone());
        Err(Failure::NoCluster { nearest: nearest(&name, &known), name, namespace, known })
    }

    /// Returns the clusters of the namespace, or of all namespaces.
    pub(super) async fn clusters(&self, everywhere: bool) -> Result<Vec<ChronicleCluster>, Failure> {
        let (api, namespace): (Api<ChronicleCluster>, _) = match everywhere {
            true => (Api::all(self.client.clone()), None),
            false => (Api::namespaced(self.client.clone(), &self.namespace), Some(self.namespace.as_str())),
        };
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            Err(error) if crate::controller::is_not_found(&error) => Err(Failure::NoDefinitions),
            Err(error) => Err(Failure::kube("list", CLUSTERS, namespace, error)),
        }
    }

    /// Returns the pods of a cluster by ordinal.
    pub(super) async fn pods(&self, cluster: &str) -> Result<BTreeMap<i32, Pod>, Failure> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let list = api.list(&of(cluster)).await;
        let list = list.map_err(|error| Failure::kube("list", "pods", Some(&self.namespace), error))?;
        let numbered = list.items.into_iter().filter_map(|pod| Some((ordinal_of(cluster, &pod.name_any())?, pod)));
        Ok(numbered.collect())
    }

    /// Returns the claims of a cluster by ordinal.
    pub(super) async fn claims(&self, cluster: &str) -> Result<BTreeMap<i32, PersistentVolumeClaim>, Failure> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        let list = api.list(&of(cluster)).await;
        let list =
            list.map_err(|error| Failure::kube("list", "persistentvolumeclaims", Some(&self.namespace), error))?;
        let numbered =
            list.items.into_iter().filter_map(|claim| Some((ordinal_of(cluster, &claim.name_any())?, claim)));
        Ok(numbered.collect())
    }

    /// Returns how to connect to the nodes, with the certificate of the operator, if the user may read it.
    pub(super) async fn target(&self, resource: &ChronicleCluster) -> Result<Target, Failure> {
        let size = resource.status.as_ref().and_then(|status| status.size).unwrap_or(resource.spec.replicas);
        let invalid = |invalid: crate::build::Invalid| Failure::Refused(format!("the spec is invalid: {invalid}"));
        let cluster = validate(resource, size.max(1), true).map_err(invalid)?;
        // Used for reads only, and not for calls to nodes.
        let context = Context::new(
            self.client.clone(),
            Arc::new(Nodes::default()),
            Settings::default(),
            Metrics::new(),
            "kubectl-chronicle",
        );
        let target = operator_target(&context, &cluster, size.max(cluster.spec.replicas)).await;
        let target = target.map_err(|error| Failure::reconcile(&self.namespace, error))?;
        target.ok_or_else(|| {
            let names = format!("{} and {}", cluster.node_secret(), cluster.operator_secret());
            Failure::Nodes(format!("Secrets {names} are missing or incomplete"))
        })
    }
}

/// Name of the resource in RBAC rules.
pub(super) const CLUSTERS: &str = "chronicleclusters.chronicle.dev";

/// Returns list parameters that select the objects of a cluster.
pub(super) fn of(cluster: &str) -> ListParams {
    ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"))
}
