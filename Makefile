# The verbs of the project; .ci/run calls `make ci`, so what passes here passes there.
CARGO ?= cargo
DATA ?= data
# make run RELEASE=1: a slower build, a much faster node.
PROFILE_FLAG = $(if $(RELEASE),--release,)

# The simulation is a build of everything with other flags, in a target folder of its own; as in .ci/test.
SIMULATION = CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}/simulation" CARGO_PROFILE_DEV_OPT_LEVEL=1 \
	RUSTFLAGS="$(RUSTFLAGS) --cfg tokio_unstable --cfg chronicle_mutants"

.DEFAULT_GOAL := help
.PHONY: help run test lint fmt fmt-check doc ci sim mutants nemesis bench bench-cluster licences image images clean \
	kube-up kube-down kube-smoke test-kube test-kube-full test-charts bench-kube

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

run: ## Build and start a node on 127.0.0.1:7400 with its data in ./data (DATA=dir, RELEASE=1)
	$(CARGO) build $(PROFILE_FLAG) --locked --package chronicle-node --bin chronicle
	@echo
	@echo "Once it serves, in another terminal (Ctrl-C here stops the node):"
	@echo "  curl --data 'hello' http://127.0.0.1:7400/"
	@echo "  curl 'http://127.0.0.1:7400/?offset=0'"
	@echo "  $(CARGO) run --quiet --bin chronicle -- consume --topic default --from earliest"
	@echo
	@exec $(CARGO) run --quiet $(PROFILE_FLAG) --locked --package chronicle-node --bin chronicle -- dev --data "$(DATA)"

test: ## Every test; the last line counts them
	@CARGO="$(CARGO)" .ci/test

lint: ## Clippy on everything, warnings are errors
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check: ## Check the format
	$(CARGO) fmt --all -- --check

doc: ## Build the API documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

ci: fmt-check lint doc test ## What .ci/run runs

bench: ## Measure the disk and beside it the engine and the node (BENCH_FLAGS="--quick --data /mnt/disk")
	$(CARGO) build --release --locked --package chronicle-node --package chronicle-tests --bin chronicle --bin bench
	@"$${CARGO_TARGET_DIR:-target}/release/bench" $(BENCH_FLAGS)

bench-cluster: ## The same for three nodes, about half an hour (BENCH_FLAGS as above)
	@$(MAKE) --no-print-directory bench BENCH_FLAGS="--suite cluster $(BENCH_FLAGS)"

sim: ## Simulate clusters from seeds (SEEDS=2000 SEED=1: how many, and the first)
	$(SIMULATION) CHRONICLE_SIMULATION_SEEDS=$(or $(SEEDS),2000) CHRONICLE_SIMULATION_FIRST=$(or $(SEED),1) \
	$(CARGO) test --package chronicle-simulation --locked --test seeds -- --nocapture clusters_keep

mutants: ## Show that the simulation finds defects in the real code (MUTANT=name: that one; SEED=0: the first seed)
	$(SIMULATION) $(if $(MUTANT),CHRONICLE_SIMULATION_MUTANT=$(MUTANT)) CHRONICLE_SIMULATION_FIRST=$(or $(SEED),0) \
	$(CARGO) test --package chronicle-simulation --locked --test mutants -- --nocapture every_mutant

nemesis: ## Random faults in a cluster of real processes under load (MINUTES=10; SEED=n repeats the order of the faults; root)
	CHRONICLE_TEST_FACTOR=$(or $(MINUTES),10) $(if $(SEED),CHRONICLE_NEMESIS_SEED=$(SEED)) \
	$(CARGO) test --package chronicle-tests --locked --test clusters -- --nocapture nemesis::

# Two dozen decoders, as many at a time as there are cores.
fuzz: ## Mutate the input of every decoder (MINUTES=10, SEED=n); an input that fails, or is new, is written to tests/corpus
	CHRONICLE_FUZZ_SECONDS=$$(( $(or $(MINUTES),10) * 60 * $$(nproc) / 24 )) CHRONICLE_FUZZ_SEED=$(or $(SEED),$(shell date +%s)) \
	$(CARGO) test --package chronicle-records --package chronicle-log --package chronicle-node --locked \
	--lib --test records --test log -- --nocapture fuzz::

licences: ## Check the licence of every dependency
	$(CARGO) test --locked --package chronicle-tests --test repository licences::

image: ## Build the container images chronicle and chronicle-operator with docker
	docker build --target node --tag chronicle:dev .
	docker build --target operator --tag chronicle-operator:dev .

clean: ## Remove build output (never data)
	$(CARGO) clean

# Kubernetes: a cluster to test with, images, charts. tests/kube/README.md tells more.
kube-up: ## Start a Kubernetes of three nodes on this machine (root; the first time builds it, about 6 minutes)
	@tests/kube/up

kube-down: ## Stop it and leave nothing but the cache
	@tests/kube/down

kube-smoke: kube-up ## Check that it does what the tests rely on
	@tests/kube/smoke

images: ## Build both images with buildah as OCI archives in target/images, without a registry (PROFILE=dist)
	@deploy/image/build --profile $(or $(PROFILE),dist) --out target/images

test-kube: ## Charts, the node image and the operator on a Kubernetes made for it (root; KEEP=1 leaves it running)
	@tests/kube/all $(if $(KEEP),--keep)

test-kube-full: ## The same with lost machines, full disks, no API server, ten minutes without a write: half an hour
	@tests/kube/all --full $(if $(KEEP),--keep)

bench-kube: kube-up ## What the operator costs, on a Kubernetes made for it (root; a release build, then five minutes)
	$(CARGO) build --release --locked --workspace --bins
	@CHRONICLE_PROGRAMS="$${CARGO_TARGET_DIR:-target}/release" tests/kube/images chronicle
	@tests/kube/bench

test-charts: kube-up ## Lint and render the charts and kustomizations, and have the API server check them
	@charts/check
