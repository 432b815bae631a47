# A ChronicleCluster named `log` under test, and the operator that looks after it: what the scripts `operator` and `operator-full`
# share. Sourced, after lib.sh, check.sh and workload.sh.

system=chronicle-system
space=operator-test
tag=${CHRONICLE_IMAGE_TAG:-dev}
kk() { k --namespace $space "$@"; }

# What an earlier run has left: first what the operator must take apart, then the operator. A finalizer that nobody is there to
# honour is taken away.
clear_away() {
  local kind left
  for kind in chronicleusers chronicletopics chronicleclusters; do kk delete "$kind" --all --timeout=20s --ignore-not-found >/dev/null 2>&1; done
  for left in $(kk get chronicleclusters,chronicletopics,chronicleusers -o name 2>/dev/null); do
    kk patch "$left" --type=merge -p '{"metadata":{"finalizers":null}}' >/dev/null 2>&1
  done
  k delete namespace $space --ignore-not-found --timeout=120s >/dev/null
  helm uninstall chronicle-operator --namespace $system >/dev/null 2>&1
  k delete clusterrole,clusterrolebinding chronicle-operator --ignore-not-found >/dev/null
  k delete namespace $system --ignore-not-found --timeout=120s >/dev/null
  k create namespace $space >/dev/null
  k label namespace $space pod-security.kubernetes.io/enforce=restricted >/dev/null
  eventually 20 kk get serviceaccount default || die "no service account in namespace $space"
}

# The kubelets here bring a changed ConfigMap within ten seconds or so.
install_by_helm() {
  helm upgrade --install chronicle-crds "$REPO/charts/chronicle-crds" --namespace $system --create-namespace --take-ownership --wait --timeout 60s &&
    helm upgrade --install chronicle-operator "$REPO/charts/chronicle-operator" --namespace $system --create-namespace \
      --set image.repository=chronicle.test/chronicle-operator --set image.tag="$tag" --set replicas=2 --set leaseSeconds=5 --set trustSettlesSeconds=30 --wait --timeout 60s
}

# status FILTER [NAME]: what jq makes of the cluster's status.
status() { kk get chroniclecluster "${2:-log}" -o json | jq -e "$1"; }
# holds CONDITION [NAME]
holds() { status ".status.conditions // [] | any(.type == \"$1\" and .status == \"True\")" "${2:-log}"; }
# says CONDITION REASON TEXT [NAME]: whether a condition has this reason, and TEXT in its message.
says() { status ".status.conditions // [] | any(.type == \"$1\" and .reason == \"$2\" and (.message | contains(\"$3\")))" "${4:-log}"; }
# Everything is as the spec says, and nothing is under way.
converged() {
  kk get chroniclecluster "${1:-log}" -o json | jq -e '
    (.status.conditions | map({(.type): .status}) | add) as $is
    | .status.observedGeneration == .metadata.generation and $is.Available == "True" and $is.Quorate == "True" and $is.UpToDate == "True"
      and $is.Progressing == "False" and $is.Degraded == "False" and .status.operation == null
      and .status.readyReplicas == .spec.replicas and (.status.members | length) == .spec.replicas'
}
explain() {
  kk get chroniclecluster "${1:-log}" -o yaml | sed -n '/^status:/,$p'
  kk get pods -o wide
  kk get events --sort-by=.lastTimestamp | tail -15
  k --namespace $system logs -l app.kubernetes.io/name=chronicle-operator --tail=20
}
# converges SECONDS [NAME]
converges() { eventually "$1" converged "${2:-log}" || { explain "${2:-log}"; return 1; }; }

values=$RUN/etc/values.yaml
cat >"$values" <<Y
image: {repository: chronicle.test/chronicle, tag: "$tag"}
cluster:
  storage: {size: 256Mi, storageClassName: sized}
  resources: {requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 1Gi}}
topics:
- name: written
  spec: {replicationFactor: 3}
users:
- name: writer
  spec: {authorization: {acls: [{resource: Topic, name: written, operations: [Read, Write, Describe]}]}}
Y
# cluster [HELM OPTIONS..]: installs or changes it by the chart.
cluster() { helm upgrade --install log "$REPO/charts/chronicle" --namespace $space --values "$values" "$@"; }
becomes_quorate() {
  local began
  began=$(now_ms)
  cluster || return 1
  eventually 60 holds Quorate || { explain; return 1; }
  echo "measured: from helm install to Quorate in $(($(now_ms) - began)) ms"
}
user_is_ready() {
  kk wait --for=condition=Ready --timeout=60s chronicletopic/log-written chronicleuser/log-writer && kk get secret log-writer-chronicle-user
}
writer_works() {
  workload_forget $space writer
  workload_manifest writer "log.$space.svc:7400" written log-writer-chronicle-user log-trust | kk apply -f - &&
    kk wait --for=condition=Ready pod/writer --timeout=60s && sleep 1 && workload_ask $space writer mark
}
# The cluster, its topic and user, and a pod that appends; without them nothing that follows can succeed.
begin() {
  check "a cluster of three becomes quorate" becomes_quorate
  check "and converges" converges 60
  check "a topic and a user with a certificate" user_is_ready
  check "a pod appends over mutual TLS" writer_works
  if [ "$FAILED" -gt 0 ]; then
    conclude
    exit 1
  fi
}
gap() { check "longest gap in appends below $(patient "$1") ms" workload_gap_below $space writer "$1"; }
keeps_its_word() { echo "measured: $(workload_ask $space writer finish)"; workload_ask $space writer; }
end() { check "every acknowledged append is there, once, in order" keeps_its_word; }

uid() { kk get pod "$1" -o jsonpath='{.metadata.uid}' 2>/dev/null; }
uids() { kk get pods -l chronicle.dev/cluster=log -o jsonpath='{.items[*].metadata.uid}'; }
pods() { kk get pods -l chronicle.dev/cluster=log -o name | wc -l; }
claims() { kk get pvc -l chronicle.dev/cluster=log -o name | wc -l; }
none_run() { [ "$(pods)" = 0 ]; }
# gone_and_back POD UID: another pod of this name is ready.
gone_and_back() { [ "$(uid "$1")" != "$2" ] && kk wait --for=condition=Ready "pod/$1" --timeout=1s; }
# pod_pid NAMESPACE POD: its process, as this machine sees it.
pod_pid() {
  local node id
  node=$(k --namespace "$1" get pod "$2" -o jsonpath='{.spec.nodeName}') && id=$(k --namespace "$1" get pod "$2" -o jsonpath='{.status.containerStatuses[0].containerID}') &&
    ctr "$node" task ls | awk -v id="${id#containerd://}" '$1 == id { print $2 }'
}
# The operator that acts.
operator_pod() { k --namespace $system get lease chronicle-operator -o jsonpath='{.spec.holderIdentity}'; }
# Writes of the operator so far, without those of its Lease, one line each.
operator_writes() {
  jq -c 'select(.user.username == "system:serviceaccount:'$system':chronicle-operator" and .objectRef.resource != "leases") | [.verb, .requestURI]' "$LOGS/audit.jsonl"
}
# quiet SECONDS: the operator writes nothing for so long.
quiet() {
  local before after
  before=$(operator_writes | wc -l)
  sleep "$1"
  after=$(operator_writes | wc -l)
  [ "$before" = "$after" ] || { operator_writes | tail -n $((after - before)); return 1; }
}
# refuses PATCH TEXT: the API server refuses this change of the cluster, and says TEXT.
refuses() { ! kk patch chroniclecluster log --type=merge -p "$1" >"$RUN/etc/refused" 2>&1 && grep -F "$2" "$RUN/etc/refused"; }
uninstalls() {
  helm uninstall log --namespace $space --wait --timeout 120s && eventually 60 none_run && helm uninstall chronicle-operator --namespace $system --wait --timeout 60s
}
