//! The controllers of the fake: StatefulSet controller, kubelets and cert-manager. [`FakeKubernetes::tick`] runs them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::{FakeKubernetes, Mounted, NEW_FIELD, NONSENSE, pem};
use crate::build::{LIVE_FIELDS, ordinal_of};

impl FakeKubernetes {
    /// cert-manager: issues missing Secrets and those with a requested reissue.
    pub(super) fn issue_certificates(&self) {
        if self.no_certificates.load(Ordering::Relaxed) {
            return;
        }
        for name in self.names("certificates") {
            let certificate = self.get("certificates", &name).unwrap();
            let conditions = certificate["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let asked =
                conditions.iter().any(|condition| condition["type"] == "Issuing" && condition["status"] == "True");
            let secret = certificate["spec"]["secretName"].as_str().unwrap().to_owned();
            if self.get("secrets", &secret).is_some() && !asked {
                continue;
            }
            if asked {
                self.edit("certificates", &name, |certificate| certificate["status"]["conditions"] = json!([]));
            }
            let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
            let ca = pem(&self.ca.lock());
            let issued = if certificate["spec"]["isCA"] == true { ca.clone() } else { self.leaf() };
            self.put(
                "secrets",
                json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": {"name": secret, "labels": certificate["spec"]["secretTemplate"]["labels"]},
                    "data": {"tls.crt": encode(&issued), "tls.key": encode("key"), "ca.crt": encode(&ca)},
                }),
            );
        }
    }

    /// Returns a certificate that has only a time of issue.
    pub(super) fn leaf(&self) -> String {
        let time = self.now().strftime("%y%m%d%H%M%SZ").to_string();
        let wrap = |content: Vec<u8>| [vec![0x30, content.len() as u8], content].concat();
        let validity = wrap([vec![0x17, time.len() as u8], time.into_bytes()].concat());
        let der = wrap(wrap([vec![0x02, 0x01, 0x01, 0x30, 0x00, 0x30, 0x00], validity].concat()));
        pem(&base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der))
    }

    pub(super) fn run_sets(&self) {
        for name in self.names("statefulsets") {
            let set = self.get("statefulsets", &name).unwrap();
            let (spec, uid) = (&set["spec"], &set["metadata"]["uid"]);
            let replicas = spec["replicas"].as_i64().unwrap() as i32;
            for ordinal in 0..replicas {
                let pod = format!("{name}-{ordinal}");
                let claim = format!("data-{pod}");
                if self.get("persistentvolumeclaims", &claim).is_none() {
                    let mut object = spec["volumeClaimTemplates"][0].clone();
                    object["metadata"]["name"] = claim.into();
                    object["apiVersion"] = "v1".into();
                    object["kind"] = "PersistentVolumeClaim".into();
                    self.put("persistentvolumeclaims", object);
                }
                if self.get("pods", &pod).is_none() {
                    let mut metadata = spec["template"]["metadata"].clone();
                    metadata["name"] = pod.into();
                    metadata["ownerReferences"] =
                        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": uid}]);
                    let object = json!({
                        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                        "spec": spec["template"]["spec"], "status": {"phase": "Pending"},
                    });
                    self.put("pods", object);
                }
            }
            for pod in self.names("pods") {
                if ordinal_of(&name, &pod).is_some_and(|ordinal| ordinal >= replicas) {
                    self.begin_delete("pods", &pod);
                }
            }
        }
    }

    pub(super) fn run_pods(&self) {
        let mut running = BTreeSet::new();
        for name in self.names("pods") {
            let pod = self.get("pods", &name).unwrap();
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                self.objects.lock().remove(&("pods".to_owned(), name));
                continue;
            }
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
            let node = self.node_of(&name);
            let starts =
                !self.broken_images.lock().contains(image) && pod["metadata"]["annotations"]["stuck"].is_null();
            let version = image.rsplit_once(':').map_or("", |(_, version)| version);
            let file = self.mounted.lock().get(&name).map(|mounted| mounted.file.clone()).unwrap_or_default();
            let runs = |node: &String| self.cluster.lock().nodes.get(node).is_some_and(|known| known.running);
            // A running node keeps its previous configuration.
            let starts = starts && (is_valid(&file, version) || node.as_ref().is_some_and(runs));
            let ready = match node.filter(|_| starts) {
                Some(node) if self.cluster.lock().start(&node, &name, version) => {
                    self.read_file(&node, &file);
                    running.insert(node)
                }
                _ => false,
            };
            let status = if ready {
                json!({
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [container(json!({"running": {}}))],
                })
            } else {
                json!({
                    "phase": "Pending",
                    "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2027-01-01T00:00:00Z"}],
                    "containerStatuses": [container(json!({"waiting": {"reason": "ImagePullBackOff"}}))],
                })
            };
            if pod["status"] != status {
                self.edit("pods", &name, |pod| pod["status"] = status);
            }
        }
        self.cluster.lock().stop_all_but(&running);
        let pods = self.names("pods");
        let mut objects = self.objects.lock();
        objects.retain(|(kind, name), object| {
            let used = name.strip_prefix("data-").is_some_and(|pod| pods.iter().any(|known| known == pod));
            kind != "persistentvolumeclaims" || object["metadata"]["deletionTimestamp"].is_null() || used
        });
    }

    /// The kubelets: update mounted ConfigMaps and Secrets every 90 seconds, and at once for a new pod.
    pub(super) fn mount(&self) {
        let pods = self.names("pods");
        let mut mounted = self.mounted.lock();
        mounted.retain(|pod, _| pods.contains(pod));
        let due = self.seconds.load(Ordering::Relaxed) % 90 == 0;
        for pod in pods {
            let Some(cluster) = pod.rsplit_once('-').map(|(cluster, _)| cluster.to_owned()) else { continue };
            let metadata = self.get("pods", &pod).unwrap()["metadata"].clone();
            let cause = json!([metadata["uid"], metadata["annotations"]]);
            if due || mounted.get(&pod).is_none_or(|before| before.cause != cause) {
                let text = |map: &str, file: &str| {
                    let map = self.get("configmaps", &format!("{cluster}-{map}")).unwrap_or_default();
                    map["data"][file].as_str().unwrap_or_default().to_owned()
                };
                let (trust, file) = (text("trust", "ca.crt"), text("config", "chronicle.yaml"));
                mounted.insert(pod, Mounted { cause, trust, file });
            }
        }
    }

    /// The node of a pod reads its configuration file.
    fn read_file(&self, node: &str, file: &str) {
        let mute = self.mute.load(Ordering::Relaxed);
        let mut cluster = self.cluster.lock();
        let Some(node) = cluster.nodes.get_mut(node) else { return };
        if node.started_with.is_empty() {
            node.started_with = file.to_owned();
            node.configuration = None;
        }
        let known = node.configuration.get_or_insert_default();
        match is_valid(file, &node.version) {
            false => known.error = format!("{NONSENSE}: must be a number"),
            true => {
                let (started, now) = (fields_of(&node.started_with), fields_of(file));
                let changed = |path: &String| started.get(path) != now.get(path);
                let live = |path: &String| {
                    LIVE_FIELDS.lines().any(|live| live == path) && !self.stubborn.lock().contains(path)
                };
                let paths: BTreeSet<&String> = started.keys().chain(now.keys()).collect();
                known.file_digest = blake3::hash(file.as_bytes()).to_hex().to_string();
                known.restart_fields = paths.into_iter().filter(|path| changed(path) && !live(path)).cloned().collect();
                known.error.clear();
            }
        }
        if mute {
            node.configuration = None;
        }
    }
}

/// Returns whether nodes of a version accept a configuration file.
fn is_valid(file: &str, version: &str) -> bool {
    !file.contains(NONSENSE) && (version != "1.0.0" || !file.contains(NEW_FIELD))
}

fn container(state: Value) -> Value {
    json!({"name": "chronicle", "image": "x", "imageID": "", "ready": true, "restartCount": 0, "state": state})
}

/// Returns the fields of a configuration file by path.
fn fields_of(file: &str) -> BTreeMap<String, Value> {
    fn leaves(path: &str, value: Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    leaves(format!("{path}.{name}").trim_start_matches('.'), value, into);
                }
            }
            value => _ = into.insert(path.to_owned(), value),
        }
    }
    let mut fields = BTreeMap::new();
    leaves("", serde_yaml::from_str(file).unwrap_or_default(), &mut fields);
    fields
}
