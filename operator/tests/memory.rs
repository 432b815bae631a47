//! Measures the memory of the operator with a hundred clusters: the real process against a fake API server with objects of realistic size.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};

const CLUSTERS: usize = 100;
const LIMIT_KIB: u64 = 64 * 1024;
/// Reconciles to wait for: each cluster has been created, applied and observed several times, so that the memory no longer grows.
const RECONCILES: u64 = 1500;

/// Objects by plural kind and name.
type Objects = BTreeMap<(String, String), Value>;

#[derive(Clone, Default)]
struct Api {
    objects: Arc<Mutex<Objects>>,
    version: Arc<Mutex<u64>>,
}

impl Api {
    fn fresh(&self) -> String {
        let mut version = self.version.lock();
        *version += 1;
        version.to_string()
    }

    fn put(&self, folder: &str, name: &str, mut object: Value) -> Value {
        let key = (folder.to_owned(), name.to_owned());
        let metadata = &mut object["metadata"];
        metadata["name"] = name.into();
        metadata["namespace"] = "ns".into();
        metadata["resourceVersion"] = self.fresh().into();
        if metadata["uid"].is_null() {
            metadata["uid"] = format!("uid-{}", self.fresh()).into();
            metadata["creationTimestamp"] = "2027-01-01T00:00:00Z".into();
            metadata["generation"] = 1.into();
        }
        self.objects.lock().insert(key, object.clone());
        object
    }

    fn answer(&self, method: &Method, path: &str, query: &str, body: Value) -> (StatusCode, Value) {
        let missing = || {
            (StatusCode::NOT_FOUND, json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}))
        };
        if path == "/version" {
            let fields = [
                "buildDate",
                "compiler",
                "gitCommit",
                "gitTreeState",
                "gitVersion",
                "goVersion",
                "major",
                "minor",
                "platform",
            ];
            return (
                StatusCode::OK,
                fields.iter().map(|field| ((*field).to_owned(), json!(""))).collect::<serde_json::Map<_, _>>().into(),
            );
        }
        if path == "/apis/cert-manager.io/v1" {
            let one = |kind: &str, name: &str| json!({"name": name, "kind": kind, "namespaced": true, "singularName": "", "verbs": ["list"]});
            let resources = [one("Certificate", "certificates"), one("Issuer", "issuers")];
            return (StatusCode::OK, json!({"groupVersion": "cert-manager.io/v1", "resources": resources}));
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let start = if parts[0] == "api" { 2 } else { 3 };
        let rest = match &parts[start.min(parts.len())..] {
            ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
            rest => rest,
        };
        let (plural, name) = match rest {
            [plural] => (*plural, None),
            [plural, name, ..] => (*plural, Some(*name)),
            [] => return missing(),
        };
        let Some(name) = name else {
            if *method == Method::POST {
                return (StatusCode::CREATED, body);
            }
            let label = query.split('&').find_map(|part| part.strip_prefix("labelSelector="));
            let label = label.map(|text| text.replace("%2F", "/").replace("%3D", "="));
            let selected = |object: &&Value| match label
                .as_ref()
                .map(|text| text.split_once('=').unwrap_or((text.as_str(), "")))
            {
                Some((key, value)) => {
                    let there = object["metadata"]["labels"][key].as_str();
                    there.is_some_and(|there| value.is_empty() || there == value)
                }
                None => true,
            };
            let objects = self.objects.lock();
            let of_kind = objects.iter().filter(|((kind, _), _)| kind == plural).map(|(_, object)| object);
            let number = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.parse::<usize>().ok());
            let (from, most) = (number("continue=").unwrap_or(0), number("limit=").unwrap_or(usize::MAX));
            let mut items: Vec<&Value> = of_kind.filter(selected).skip(from).take(most.saturating_add(1)).collect();
            let mut metadata = json!({"resourceVersion": "1"});
            if items.len() > most {
                items.pop();
                metadata["continue"] = (from + most).to_string().into();
            }
            return (StatusCode::OK, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}));
        };
        let old = self.objects.lock().get(&(plural.to_owned(), name.to_owned())).cloned();
        match (method, old) {
            (&Method::GET, Some(old)) => (StatusCode::OK, old),
            (&Method::PATCH, old) => {
                let mut new = old.unwrap_or_else(|| json!({}));
                merge(&mut new, &body);
                (StatusCode::OK, self.put(plural, name, new))
            }
            (&Method::PUT, Some(mut old)) => {
                old["status"] = body["status"].clone();
                (StatusCode::OK, self.put(plural, name, old))
            }
            // The StatefulSet controller recreates the pod from its template.
            (&Method::DELETE, Some(mut pod)) if plural == "pods" => {
                let set = name
                    .rsplit_once('-')
                    .map(|(set, _)| ("statefulsets".to_owned(), set.to_owned()))
                    .unwrap_or_default();
                let set = self.objects.lock().get(&set).cloned().unwrap_or_default();
                pod["metadata"]["annotations"] = set["spec"]["template"]["metadata"]["annotations"].clone();
                pod["metadata"]["uid"] = Value::Null;
                (StatusCode::OK, self.put(plural, name, pod))
            }
            _ => missing(),
        }
    }
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(target.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

async fn serve(State(api): State<Api>, method: Method, uri: Uri, _: HeaderMap, body: Bytes) -> Response {
    let query = uri.query().unwrap_or_default();
    if query.contains("watch=true") {
        // No change ever arrives.
        return Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()).into_response();
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, answer) = api.answer(&method, uri.path(), query, body);
    (status, [("content-type", "application/json")], answer.to_string()).into_response()
}

/// Returns managed fields like those of a real object, about 2 KiB.
fn managed_fields() -> Value {
    let fields: BTreeMap<String, Value> =
        (0..60).map(|at| (format!("f:some-field-of-the-object-{at}"), json!({".": {}}))).collect();
    json!([{"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}])
}

fn fill(api: &Api) {
    for at in 0..CLUSTERS {
        let cluster = format!("log-{at}");
        let labels = json!({
            "chronicle.dev/cluster": cluster, "app.kubernetes.io/name": "chronicle", "app.kubernetes.io/instance": cluster,
            "app.kubernetes.io/component": "node", "app.kubernetes.io/managed-by": "chronicle-operator",
        });
        let spec = json!({
            "image": "registry.example/chronicle:1.0.0", "storage": {"size": "10Gi"},
            "security": {"tls": {"mode": "Disabled"}, "authorization": {"mode": "Disabled"}},
            "config": {"limits": (0..50).map(|at| (format!("some-limit-{at}"), json!(at))).collect::<serde_json::Map<_, _>>()},
        });
        api.put(
            "chronicleclusters",
            &cluster,
            json!({
                "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "spec": spec,
                "metadata": {"managedFields": managed_fields(), "finalizers": ["chronicle.dev/operator"]},
            }),
        );
        // Pods are not ready, so the operator calls no node: names of missing pods can take long to resolve.
        for ordinal in 0..3 {
            let metadata = json!({"labels": labels, "managedFields": managed_fields()});
            let environment: Vec<Value> = (0..20)
                .map(|at| json!({"name": format!("VARIABLE_{at}"), "value": "some value of a variable"}))
                .collect();
            api.put(
                "pods",
                &format!("{cluster}-{ordinal}"),
                json!({
                    "metadata": metadata,
                    "spec": {"containers": [{"name": "chronicle", "image": "chronicle", "env": environment}]},
                    "status": {
                        "phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                        "containerStatuses": [{
                            "name": "chronicle", "image": "chronicle", "imageID": "", "ready": true, "restartCount": 0,
                            "state": {"waiting": {"reason": "ContainerCreating"}},
                        }],
                    },
                }),
            );
            api.put(
                "persistentvolumeclaims",
                &format!("data-{cluster}-{ordinal}"),
                json!({
                    "metadata": metadata, "status": {"phase": "Bound"},
                    "spec": {"resources": {"requests": {"storage": "10Gi"}}, "volumeName": "volume"},
                }),
            );
            let secret = json!({"metadata": metadata, "data": {"tls.crt": "a".repeat(4096)}});
            api.put("secrets", &format!("{cluster}-{ordinal}"), secret);
        }
    }
}

/// Kills the process at the end of the test.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a value from `/proc/PID/status`, in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clusters_take_less_than_64_mib() {
    let api = Api::default();
    fill(&api);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(serve).with_state(api.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    let folder = std::env::temp_dir().join(format!("chronicle-operator-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": "ns"}}],
        "users": [{"name": "it", "user": {}}],
    });
    std::fs::write(&config, text.to_string()).unwrap();
    // The port is released at once; no other process is likely to take it before the operator does.
    let health = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_chronicle-operator"))
        .args([
            "run",
            "--leader-election",
            "false",
            "--log",
            "warn",
            "--log-format",
            "text",
            "--health-address",
            &health.to_string(),
        ])
        .env("KUBECONFIG", &config)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let operator = Operator(child);
    let pid = operator.0.id();

    let waiting = api.clone();
    let reconciles = async {
        loop {
            #[expect(clippy::disallowed_methods, reason = "a real connection")]
            let scrape = tokio::task::spawn_blocking(move || scrape(health)).await.unwrap().unwrap_or_default();
            let line = "chronicle_operator_reconciliations_total{kind=\"ChronicleCluster\"} ";
            let done = scrape.lines().find_map(|text| text.strip_prefix(line)?.parse::<u64>().ok()).unwrap_or(0);
            let sets = waiting.objects.lock().keys().filter(|(kind, _)| kind == "statefulsets").count();
            if done >= RECONCILES && sets == CLUSTERS {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let reconciles = tokio::time::timeout(Duration::from_secs(120), reconciles)
        .await
        .expect("not every cluster was reconciled in time");
    let (now, most) = (memory(pid, "VmRSS"), memory(pid, "VmHWM"));
    let (own, of_files) = (memory(pid, "RssAnon"), memory(pid, "RssFile"));
    println!(
        "{CLUSTERS} clusters, {reconciles} reconciles: {now} KiB resident ({own} KiB its own, {of_files} KiB of its program), {most} KiB at most"
    );
    drop(operator);
    server.abort();
    let _ = std::fs::remove_dir_all(&folder);
    assert!(most < LIMIT_KIB, "{most} KiB resident, {LIMIT_KIB} are the limit");
}

/// The metrics, by plain HTTP.
fn scrape(address: std::net::SocketAddr) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
