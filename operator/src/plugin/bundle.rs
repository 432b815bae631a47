//! `bundle`: collects the data for a diagnosis of a cluster in one .tar.gz.
//!
//! Invariants:
//! - Secrets are read as metadata only. Everything else goes through [`masked`].
//! - A failed read is a line in `problems.txt` and does not fail the command: bundles are made when something is broken.
//! - Sizes are bounded: each log, the files of each node, and [`LIST_MAX`] objects per kind.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use futures::AsyncReadExt;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, LogParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::archive::Archive;
use super::error::PluginError;
use super::mask::masked;
use super::plan;
use super::session::{Session, of};
use crate::admin::Admin;
use crate::api::ChronicleCluster;
use crate::build::{KINDS, Settings, ordinal_of, pod_name};
use crate::controller::Context;
use crate::telemetry::Metrics;

/// Maximum number of objects of a kind.
const LIST_MAX: u32 = 5_000;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct BundleArgs {
    /// Name of the ChronicleCluster.
    pub(super) name: String,
    /// Archive to write; must not exist yet. Default: chronicle-bundle-NAMESPACE-NAME-TIME.tar.gz.
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Maximum size of each log, in MiB; the newest part is kept.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "MIB")]
    pub(super) log_mib: u32,
    /// Namespace that the operator runs in.
    #[arg(long, default_value = "chronicle-system", value_name = "NAMESPACE")]
    pub(super) operator_namespace: String,
}

pub(super) async fn run(session: &Session, args: &BundleArgs, out: &mut dyn Write) -> Result<(), PluginError> {
    let cluster = session.cluster(&args.name).await?;
    #[expect(clippy::disallowed_methods, reason = "names the bundle by the time on this machine")]
    let now = Timestamp::now();
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let folder = format!("chronicle-bundle-{}-{}-{time}", session.namespace, args.name);
    let path = args.file.clone().unwrap_or_else(|| format!("{folder}.tar.gz").into());
    let shown = path.display().to_string();
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(PluginError::io(&shown))?;
    let new_context = |client: Client, admin: std::sync::Arc<dyn Admin>| {
        let settings = Settings { operator_namespace: args.operator_namespace.clone(), ..Settings::default() };
        Context::new(client, admin, settings, Metrics::new(), "kubectl-chronicle")
    };
    let written = write(session, args, &cluster, file, &folder, now, new_context).await;
    let finished = written.and_then(|(file, files, problems)| {
        let bytes = file.sync_all().and_then(|()| file.metadata()).map_err(PluginError::io(&shown))?.len();
        Ok((bytes, files, problems))
    });
    let (bytes, files, problems) = match finished {
        Ok(finished) => finished,
        Err(failure) => {
            // Do not leave an incomplete archive.
            let _ = std::fs::remove_file(&path);
            return Err(failure);
        }
    };
    for problem in &problems {
        eprintln!("not included: {problem}");
    }
    writeln!(out, "{shown}: {files} files, {bytes} bytes, {} problems", problems.len())
        .map_err(PluginError::io("standard output"))
}

/// Writes the archive. Returns the writer, the number of files, and the problems.
pub(super) async fn write<W: Write>(
    session: &Session,
    args: &BundleArgs,
    cluster: &ChronicleCluster,
    to: W,
    folder: &str,
    now: Timestamp,
    context: impl FnOnce(Client, std::sync::Arc<dyn Admin>) -> Context,
) -> Result<(W, usize, Vec<String>), PluginError> {
    let mtime = u64::try_from(now.as_second()).unwrap_or(0);
    let mut bundle = Bundle { session, args, archive: Archive::new(to, folder, mtime), problems: Vec::new() };
    bundle.about(now).await?;
    bundle.resources(cluster).await?;
    bundle.secrets().await?;
    match plan::make(session, &args.name, context).await {
        Ok(plan) => bundle.archive.add(&["plan.txt"], plan::text(&plan).as_bytes())?,
        Err(failure) => bundle.problems.push(format!("plan: {failure}")),
    }
    let pods: Vec<String> = match session.pods(&args.name).await {
        Ok(pods) => pods.keys().map(|ordinal| pod_name(&args.name, *ordinal)).collect(),
        Err(failure) => {
            bundle.problems.push(failure.to_string());
            Vec::new()
        }
    };
    for pod in &pods {
        bundle.logs(&session.namespace, pod, "chronicle", &["logs", pod]).await?;
    }
    bundle.operator().await?;
    bundle.nodes(cluster).await?;
    let Bundle { mut archive, problems, .. } = bundle;
    let text: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    archive.add(&["problems.txt"], text.as_bytes())?;
    let (to, files) = archive.finish()?;
    Ok((to, files, problems))
}

struct Bundle<'a, W: Write> {
    session: &'a Session,
    args: &'a BundleArgs,
    archive: Archive<W>,
    problems: Vec<String>,
}

impl<W: Write> Bundle<'_, W> {
    async fn about(&mut self, now: Timestamp) -> Result<(), PluginError> {
        let server = match self.session.client.apiserver_version().await {
            Ok(version) => version.git_version,
            Err(error) => {
                self.problems.push(format!("version of the API server: {}", super::error::causes(&error)));
                String::new()
            }
        };
        let about = json!({
            "made": now.to_string(), "plugin": env!("CARGO_PKG_VERSION"), "apiServer": server,
            "namespace": self.session.namespace, "cluster": self.args.name,
        });
        self.archive.add(&["bundle.json"], format!("{about:#}\n").as_bytes())
    }

    /// Adds the objects of the cluster, and the machines, volumes and storage classes that it uses.
    async fn resources(&mut self, cluster: &ChronicleCluster) -> Result<(), PluginError> {
        let name = self.args.name.as_str();
        let own = serde_json::to_value(cluster).unwrap_or_default();
        self.objects("chronicleclusters", vec![own])?;
        let selected = of(name).limit(LIST_MAX);
        let more = [("", "v1", "Pod", "pods"), ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")];
        let mut machines = Vec::new();
        let mut volumes = Vec::new();
        for (group, version, kind, plural) in KINDS.into_iter().chain(more) {
            let found = self.list(group, version, kind, plural, true, &selected).await;
            let names = |path: &str| {
                found.iter().filter_map(|object| object.pointer(path)?.as_str().map(str::to_owned)).collect()
            };
            match plural {
                "pods" => machines = names("/spec/nodeName"),
                "persistentvolumeclaims" => volumes = names("/spec/volumeName"),
                _ => {}
            }
            self.objects(plural, found)?;
        }
        let all = ListParams::default().limit(LIST_MAX);
        for (kind, plural) in [("ChronicleTopic", "chronicletopics"), ("ChronicleUser", "chronicleusers")] {
            let mut found = self.list("chronicle.dev", "v1alpha1", kind, plural, true, &all).await;
            found.retain(|object| object["spec"]["clusterRef"]["name"] == name);
            self.objects(plural, found)?;
        }
        let mut events = self.list("", "v1", "Event", "events", true, &all).await;
        events.retain(|event| {
            let about = event["involvedObject"]["name"].as_str().unwrap_or_default();
            about == name || about.starts_with(&format!("{name}-")) || about.starts_with(&format!("data-{name}-"))
        });
        self.objects("events", events)?;
        for (kind, plural, wanted) in [("Node", "nodes", machines), ("PersistentVolume", "persistentvolumes", volumes)]
        {
            let mut found = self.list("", "v1", kind, plural, false, &all).await;
            found.retain(|object| wanted.iter().any(|name| object["metadata"]["name"] == name.as_str()));
            self.objects(plural, found)?;
        }
        let classes = self.list("storage.k8s.io", "v1", "StorageClass", "storageclasses", false, &all).await;
        self.objects("storageclasses", classes)
    }

    /// Returns the objects of a kind; none, with a problem noted, if they cannot be listed.
    async fn list(
        &mut self,
        group: &str,
        version: &str,
        kind: &str,
        plural: &str,
        namespaced: bool,
        selected: &ListParams,
    ) -> Vec<Value> {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let client = self.session.client.clone();
        let (api, namespace): (Api<DynamicObject>, _) = match namespaced {
            true => (
                Api::namespaced_with(client, &self.session.namespace, &resource),
                Some(self.session.namespace.as_str()),
            ),
            false => (Api::all_with(client, &resource), None),
        };
        match api.list(selected).await {
            Ok(list) => {
                if list.metadata.continue_.as_ref().is_some_and(|more| !more.is_empty()) {
                    self.problems.push(format!("{plural}: more than {LIST_MAX} objects; the rest is not included"));
                }
                let value = |mut object: DynamicObject| {
                    let types = (object.types.take()).map(|types| (types.api_version, types.kind));
                    let mut value = serde_json::to_value(object).unwrap_or_default();
                    let (api_version, kind) = types.unwrap_or((resource.api_version.clone(), kind.to_owned()));
                    (value["apiVersion"], value["kind"]) = (api_version.into(), kind.into());
                    value
                };
                list.items.into_iter().map(value).collect()
            }
            // Optional CRDs may not be installed.
            Err(error) if crate::controller::is_not_found(&error) => Vec::new(),
            Err(error) => {
                self.problems.push(PluginError::kube("list", plural, namespace, error).to_string());
                Vec::new()
            }
        }
    }

    fn objects(&mut self, plural: &str, objects: Vec<Value>) -> Result<(), PluginError> {
        let mut text = String::new();
        for object in objects {
            text.push_str("---\n");
            text.push_str(&serde_yaml::to_string(&masked(object)).unwrap_or_else(|error| format!("# {error}\n")));
        }
        self.archive.add(&["resources", &format!("{plural}.yaml")], text.as_bytes())
    }

    /// Adds metadata of Secrets. Their data is not requested.
    async fn secrets(&mut self) -> Result<(), PluginError> {
        let name = self.args.name.as_str();
        let api: Api<Secret> = Api::namespaced(self.session.client.clone(), &self.session.namespace);
        let secrets = match api.list_metadata(&ListParams::default().limit(LIST_MAX)).await {
            Ok(list) => list.items,
            Err(error) => {
                let failure = PluginError::kube("list", "secrets", Some(&self.session.namespace), error);
                self.problems.push(format!("metadata of secrets: {failure}"));
                Vec::new()
            }
        };
        let ours = secrets.into_iter().filter(|secret| {
            let secret_name = secret.name_any();
            secret_name.starts_with(&format!("{name}-")) || secret.labels().values().any(|value| value == name)
        });
        let facts = ours.map(|secret| {
            json!({
                "name": secret.name_any(),
                "created": secret.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
                "labels": secret.metadata.labels,
                // Values of annotations may repeat the data.
                "annotations": secret.annotations().keys().collect::<Vec<_>>(),
                "owners": secret.owner_references().iter().map(|owner| format!("{}/{}", owner.kind, owner.name)).collect::<Vec<_>>(),
            })
        });
        let text = serde_yaml::to_string(&facts.collect::<Vec<Value>>()).unwrap_or_default();
        self.archive.add(&["resources", "secrets-without-data.yaml"], text.as_bytes())
    }

    /// Adds the logs of a container: the current ones and those before its last restart.
    async fn logs(&mut self, namespace: &str, pod: &str, container: &str, folder: &[&str]) -> Result<(), PluginError> {
        let bytes_max = self.args.log_mib as usize * (1 << 20);
        for (previous, file) in [(false, "current.log"), (true, "previous.log")] {
            let pods: Api<Pod> = Api::namespaced(self.session.client.clone(), namespace);
            let params =
                LogParams { container: Some(container.to_owned()), previous, timestamps: true, ..LogParams::default() };
            match newest(&pods, pod, &params, bytes_max).await {
                Ok(text) => self.archive.add(&[folder, &[file]].concat(), &text)?,
                // Most containers have never been restarted.
                Err(kube::Error::Api(status)) if previous && status.code == 400 => {}
                Err(error) => {
                    let what = format!("pods/log of {pod}{}", if previous { " (previous)" } else { "" });
                    self.problems.push(PluginError::kube("get", &what, Some(namespace), error).to_string());
                }
            }
        }
        Ok(())
    }

    /// Adds the pods of the operator and their logs.
    async fn operator(&mut self) -> Result<(), PluginError> {
        let namespace = self.args.operator_namespace.clone();
        let pods: Api<Pod> = Api::namespaced(self.session.client.clone(), &namespace);
        let labelled = ListParams::default().labels("app.kubernetes.io/name=chronicle-operator");
        let pods = match pods.list(&labelled).await {
            Ok(list) => list.items,
            Err(error) => {
                let failure = PluginError::kube("list", "pods", Some(&namespace), error);
                self.problems.push(format!("operator: {failure}"));
                return Ok(());
            }
        };
        if pods.is_empty() {
            let why = format!(
                "operator: no operator pod in namespace {namespace}; set --operator-namespace to its namespace"
            );
            self.problems.push(why);
        }
        for pod in pods {
            let name = pod.name_any();
            let value = masked(serde_json::to_value(&pod).unwrap_or_default());
            let text = serde_yaml::to_string(&value).unwrap_or_default();
            self.archive.add(&["operator", &name, "pod.yaml"], text.as_bytes())?;
            self.logs(&namespace, &name, "operator", &["operator", &name]).await?;
        }
        Ok(())
    }

    /// Adds the view of the cluster and the diagnostics of each node.
    async fn nodes(&mut self, cluster: &ChronicleCluster) -> Result<(), PluginError> {
        let target = match self.session.target(cluster).await {
            Ok(target) => target,
            Err(failure) => {
                self.problems.push(format!("nodes: {failure}"));
                return Ok(());
            }
        };
        let nodes = self.session.nodes(&self.args.name);
        match nodes.observe(&target).await {
            Ok(view) => self.archive.add(&["nodes", "cluster.txt"], format!("{view:#?}\n").as_bytes())?,
            Err(error) => self.problems.push(format!("nodes: {error}")),
        }
        let bytes_max = self.args.log_mib as usize * (1 << 20);
        for (name, address) in target.nodes.iter().filter(|(name, _)| ordinal_of(&self.args.name, name).is_some()) {
            match nodes.diagnostics(&target, address, bytes_max).await {
                Ok(files) => {
                    for (file, contents) in files {
                        self.archive.add(&["nodes", name, &file], &contents)?;
                    }
                }
                Err(error) => self.problems.push(format!("node {name}: {error}")),
            }
        }
        Ok(())
    }
}

/// Returns the newest bytes of a log.
async fn newest(pods: &Api<Pod>, pod: &str, params: &LogParams, bytes_max: usize) -> Result<Vec<u8>, kube::Error> {
    let mut log = Box::pin(pods.log_stream(pod, params).await?);
    let (mut kept, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    // If the stream is interrupted, keep what has arrived.
    while let Ok(read @ 1..) = log.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..read]);
        if kept.len() > 2 * bytes_max {
            kept.drain(..kept.len() - bytes_max);
        }
    }
    let cut = kept.len().saturating_sub(bytes_max);
    kept.drain(..cut);
    Ok(kept)
}
