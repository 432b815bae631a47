# Two images from one build: `docker build --target node .` and `docker build --target operator .`
#
# rust-toolchain.toml is not copied: it also asks for rustfmt and clippy, which a build does not need. A test keeps the
# version here equal to the one there.
FROM rust:1.95.0-slim-trixie AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY proto proto
COPY client client
COPY node node
COPY operator operator
COPY tests tests
# The build tree is a cache mount and not part of the layer, so the programs are copied out of it in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked \
        --package chronicle-node --bin chronicle \
        --package chronicle-operator --bin chronicle-operator \
    && mkdir /out \
    && cp target/dist/chronicle target/dist/chronicle-operator /out/
# An owned, empty directory to copy from: the runtime image runs as a user that could not create it.
RUN mkdir -p /out/data

FROM debian:trixie-slim AS runtime
# A number and no name: Kubernetes checks `runAsNonRoot` by number.
USER 65532:65532

FROM runtime AS operator
COPY --from=build /out/chronicle-operator /usr/local/bin/chronicle-operator
ENTRYPOINT ["chronicle-operator"]

FROM runtime AS node
COPY --from=build /out/chronicle /usr/local/bin/chronicle
COPY --from=build --chown=65532:65532 /out/data /var/lib/chronicle
# Defaults for a container: all interfaces and a data directory for a volume. Mount another file over it to change them.
COPY deploy/image/chronicle.yaml /etc/chronicle/chronicle.yaml
VOLUME /var/lib/chronicle
# 7400: gRPC and HTTP/JSON. 9644: health and metrics.
EXPOSE 7400 9644
# Health is asked for by Kubernetes probes (/livez and /readyz on 9644), not by the container engine.
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
ENTRYPOINT ["chronicle"]
CMD ["node", "--config", "/etc/chronicle/chronicle.yaml"]
