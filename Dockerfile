# Two images from one build: `docker build --target node .` and `docker build --target operator .`. They hold one program and
# the libraries that it is linked to; no shell, no package manager, no root.
#
# Two arguments say where things come from:
#   PROGRAMS  a stage or image with what deploy/image/assemble makes. `build` compiles here; deploy/image/build gives an image
#             of programs that cargo compiled outside, which needs no registry.
#   BASE      a stage or image with a C library at least as new as the one that the programs were linked to. `libraries`
#             is the smallest; a distroless or a company's own base does as well.
ARG PROGRAMS=build
ARG BASE=libraries

# rust-toolchain.toml is not copied: it also asks for rustfmt and clippy, which a build does not need. A test keeps the
# version here equal to the one there.
FROM rust:1.95.0-slim-trixie AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils ca-certificates gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY proto proto
COPY client client
COPY node node
COPY operator operator
COPY tests tests
COPY deploy/image deploy/image
# The build tree is a cache mount and not part of the layer, so the programs are copied out of it in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked \
        --package chronicle-node --bin chronicle \
        --package chronicle-operator --bin chronicle-operator \
    && deploy/image/assemble /out target/dist/chronicle target/dist/chronicle-operator

FROM ${PROGRAMS} AS programs

FROM scratch AS libraries
COPY --from=programs /out/libraries /

FROM ${BASE} AS runtime
# A number and no name: Kubernetes checks `runAsNonRoot` by number.
USER 65532:65532
STOPSIGNAL SIGTERM

FROM runtime AS operator
COPY --from=programs /out/bin/chronicle-operator /usr/bin/chronicle-operator
ENTRYPOINT ["/usr/bin/chronicle-operator"]

FROM runtime AS node
COPY --from=programs /out/bin/chronicle /usr/bin/chronicle
# An owned, empty directory: a volume that the container engine makes takes its owner from here.
COPY --from=programs --chown=65532:65532 /out/data /var/lib/chronicle
# Defaults for a container: all interfaces and a data directory for a volume. Mount another file over it to change them.
COPY deploy/image/chronicle.yaml /etc/chronicle/chronicle.yaml
VOLUME /var/lib/chronicle
# 7400: gRPC and HTTP/JSON. 9644: health and metrics (/livez, /readyz, /metrics).
EXPOSE 7400 9644
ENTRYPOINT ["/usr/bin/chronicle"]
CMD ["node", "--config", "/etc/chronicle/chronicle.yaml"]
