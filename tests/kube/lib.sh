# Settings and small functions of the scripts in this folder. Sourced, never run.
#
# Everything a cluster owns has its name in it: network namespaces `NAME-cp`, `NAME-n1`.., cgroups `/NAME/n1`.., the folder
# `clusters/NAME`. Whatever is stopped is stopped by a recorded pid whose start time still matches, or by one of these names.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$HERE/../.." && pwd)

# What was built or unpacked, kept between runs and outside the checkout.
CACHE=${CHRONICLE_KUBE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/chronicle/kube}
# Name of the cluster: several may run side by side on one machine. At most 12 characters of a-z, 0-9.
CLUSTER=${CHRONICLE_KUBE_CLUSTER:-ck}
NODES=${CHRONICLE_KUBE_NODES:-n1 n2 n3}
BIN=$CACHE/bin
IMAGES=$CACHE/images
RUN=$CACHE/clusters/$CLUSTER
PIDS=$RUN/pids
LOGS=$RUN/log
export KUBECONFIG=$RUN/etc/admin.kubeconfig

# 198.18.0.0/15 is set aside for tests of networks: nobody routes it, and the namespaces have no way out anyway.
CP_IP=198.18.0.1
POD_CIDR=198.18.0.0/16
SVC_CIDR=198.19.0.0/16
API_SVC_IP=198.19.0.1
PAUSE_IMAGE=chronicle.test/pause:1
PROBE_IMAGE=chronicle.test/probe:1

# Kernel settings of the whole machine that a kubelet changes; `up` records them and `down` puts them back.
KUBELET_SYSCTLS="vm.overcommit_memory kernel.panic kernel.panic_on_oops"

log() { printf '%s %s\n' "$(date +%T.%3N)" "$*" >&2; }
die() { log "error: $*"; exit 1; }
# patient N: a limit of time, of whatever unit, as long as this machine needs it.
patient() { echo $(($1 * ${CHRONICLE_KUBE_PATIENCE:-1})); }
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# Go programs are built by whoever installed Go; where a login shell was not read it is not on the path.
find_go() {
  command -v go >/dev/null 2>&1 || PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null 2>&1 || die "go is missing; tests/kube/go/go.mod says which version"
}

# `ip netns exec` would mount a new /sys that has no cgroups in it, and containerd and kubelet need them: nsenter.
in_ns() { local ns=$1; shift; nsenter --net="/run/netns/$ns" -- "$@"; }
# In the control plane's namespace, from where the API server and every pod can be reached.
in_cp() { in_ns "$CLUSTER-cp" "$@"; }
k() { in_cp "$BIN/kubectl" "$@"; }
helm() {
  in_cp env HELM_CACHE_HOME="$RUN/helm/cache" HELM_CONFIG_HOME="$RUN/helm/config" HELM_DATA_HOME="$RUN/helm/data" "$BIN/helm" "$@"
}

node_index() { echo "${1#n}"; }
node_ip() { echo "198.18.0.$((10 + ${1#n}))"; }
node_dir() { echo "$RUN/node-$1"; }
node_socket() { echo "$RUN/node-$1/containerd.sock"; }
# Its every call warns of cgroups of version 1, where the machine has these.
ctr() {
  local node=$1
  shift
  "$BIN/ctr" --address "$(node_socket "$node")" --namespace k8s.io "$@" 2> >(grep -v DEPRECATION >&2)
}

# When a process was started, in clock ticks since the machine's: with the pid it names one process and no later one.
# Empty when it is gone, or dead and not yet reaped.
start_time() {
  local line
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # The second field, the program's name, may hold spaces; the third is the state.
  set -- ${line##*) }
  [ "$1" = Z ] || [ "$1" = X ] || echo "${20}"
}

# record NAME PID: remembers a process that we started.
record() { echo "$2 $(start_time "$2")" >"$PIDS/$1"; }
# running NAME: whether the process recorded under NAME runs.
running() {
  local pid started
  read -r pid started 2>/dev/null <"$PIDS/$1" || return 1
  [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ]
}
# daemon NAME NAMESPACE COMMAND..: starts a daemon in a session of its own, its output in log/NAME.log.
daemon() {
  local name=$1 ns=$2
  shift 2
  # 9 is the lock of the script that starts it.
  setsid nsenter --net="/run/netns/$ns" -- "$@" >>"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
  record "$name" $!
}
# halt NAME [SIGNAL [SECONDS]]: signals a recorded process and waits for its end, then kills it.
halt() {
  local name=$1 signal=${2:-TERM} rounds=$((${3:-10} * 20)) pid
  if running "$name"; then
    read -r pid _ <"$PIDS/$name"
    kill -"$signal" "$pid" 2>/dev/null || true
    while running "$name"; do
      rounds=$((rounds - 1))
      [ "$rounds" -gt 0 ] || kill -KILL "$pid" 2>/dev/null || true
      sleep 0.05
    done
  fi
  rm -f "$PIDS/$name"
}

# eventually SECONDS COMMAND..: repeats a command until it succeeds. SECONDS, with patience, bounds all of it, the command included.
eventually() {
  local end=$(($(now_ms) + $(patient "$1") * 1000))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$(now_ms)" -lt "$end" ] || return 1
    sleep 0.1
  done
}
# await SECONDS WHAT COMMAND..: the same, and says what came or did not.
await() {
  local seconds=$1 what=$2
  shift 2
  eventually "$seconds" "$@" || { log "timed out after $(patient "$seconds") s: $what"; return 1; }
  log "$what"
}

# unmount_below DIR: everything mounted under a folder, deepest first.
unmount_below() {
  local point
  awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r point; do
    umount -l "$point" || true
  done
}

# The cgroup folders of this cluster: one per hierarchy where there are several (version 1), one where there is one (version 2).
cgroup_roots() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
  else
    local dir
    for dir in cpu cpuacct cpuset memory devices freezer blkio pids systemd hugetlb; do
      [ ! -d "/sys/fs/cgroup/$dir" ] || echo "/sys/fs/cgroup/$dir"
    done
  fi
}
