#!/usr/bin/env bash
# Builds the collector that the trace test sends to, unless what is in the cache was built from the same sources by the same
# Go, and prints its path as the only line on standard output.
# It is kept in the user's cache folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

command -v go >/dev/null 2>&1 || export PATH="$PATH:/usr/local/go/bin"
if ! command -v go >/dev/null 2>&1; then
  echo "tests/collector: go is missing: the trace test builds the OpenTelemetry Collector (install golang 1.23 or newer)" >&2
  exit 1
fi

cache="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/chronicle/collector"
key="$( (cat main.go go.mod go.sum; go version) | sha256sum | cut -c1-16)"
program="$cache/collector-$key"
if [ ! -x "$program" ]; then
  mkdir -p "$cache"
  # Beside one another tests may build it twice; the last rename wins, and both are whole.
  CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -buildvcs=false" go build -trimpath -ldflags '-s -w' -o "$program.$$" . >&2
  mv "$program.$$" "$program"
fi
echo "$program"
