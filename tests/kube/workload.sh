# A client under which a cluster is tested: appends at a steady rate, and in the end reads back what was acknowledged. Sourced,
# after lib.sh. What it does is in go/cmd/probe/workload.go; `images chronicle` makes its image.

# workload_manifest NAME SERVERS TOPIC [SECRET [TRUST]]: a pod of it. SECRET holds tls.crt, tls.key and ca.crt for TLS; TRUST is a
# ConfigMap with another ca.crt to believe.
workload_manifest() {
  local name=$1 servers=$2 topic=$3 secret=${4:-} trust=${5:-} options="" mounts="[]" volumes="[]"
  if [ -n "$secret" ]; then
    options=', --ca, /tls/ca.crt, --cert, /tls/tls.crt, --key, /tls/tls.key'
    mounts='[{name: tls, mountPath: /tls, readOnly: true}]'
    volumes="[{name: tls, secret: {secretName: $secret}}]"
  fi
  if [ -n "$trust" ]; then
    options=${options/\/tls\/ca.crt/\/trust\/ca.crt}
    mounts=${mounts%]}', {name: trust, mountPath: /trust, readOnly: true}]'
    volumes=${volumes%]}", {name: trust, configMap: {name: $trust}}]"
  fi
  cat <<Y
apiVersion: v1
kind: Pod
metadata: {name: $name, labels: {app: workload}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: workload
    image: chronicle.test/workload:${CHRONICLE_IMAGE_TAG:-dev}
    imagePullPolicy: IfNotPresent
    args: [workload, -topic, $topic, -rate, "${WORKLOAD_RATE:-100}", --, /usr/bin/chronicle, --server, "$servers"$options]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: $mounts
  volumes: $volumes
Y
}
# workload_ask NAMESPACE NAME [mark|finish]: how it stands, as JSON; see workload.go. Asked over the network, so that it works while
# the API server does not.
workload_ask() {
  local namespace=$1 name=$2 address
  address=$(cat "$RUN/etc/workload-$namespace-$name" 2>/dev/null) || {
    address=$(k --namespace "$namespace" get pod "$name" -o jsonpath='{.status.podIP}') && [ -n "$address" ] || return 1
    echo "$address" >"$RUN/etc/workload-$namespace-$name"
  }
  if [ -n "${3:-}" ]; then in_cp "$BIN/probe" get "http://$address:8080/$3" ""; else in_cp "$BIN/probe" get "http://$address:8080/"; fi
}
# workload_forget NAMESPACE NAME: before a pod of the same name is made anew.
workload_forget() { rm -f "$RUN/etc/workload-$1-$2"; }
# workload_gap_below NAMESPACE NAME MS: whether no gap between acknowledgements since the last mark was as long, with patience.
# Begins anew.
workload_gap_below() {
  local gap
  gap=$(workload_ask "$1" "$2" | jq .longest_gap_ms) && workload_ask "$1" "$2" mark >/dev/null || return 1
  echo "measured: longest gap in acknowledged appends: $gap ms"
  [ "$gap" -lt "$(patient "$3")" ]
}
