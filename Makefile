# `make demo` shows it working, `make test` proves it; both prepare .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

# Environments of the frameworks that we integrate with, which need not share one.
FRAMEWORKS := .frameworks/shared/ready .frameworks/arq/ready

.PHONY: demo demo-once page dashboard test test-frameworks test-image chaos bench bench-quick \
	check format lock clean

demo: .venv/ready page
	$(BIN)/orbit-metrics demo

demo-once: .venv/ready page
	$(BIN)/orbit-metrics demo --once

# The web page, by a Node of requirements.lock.
PAGE := service/orbit_service/dashboard
page: $(PAGE)/dist/index.html
$(PAGE)/dist/index.html: hatch_build.py $(PAGE)/index.html $(PAGE)/package-lock.json \
		$(PAGE)/vite.config.ts $(shell find $(PAGE)/src -type f) | .venv/ready
	$(BIN)/python hatch_build.py

# To be imported into Grafana.
dashboard: .venv/ready
	mkdir -p build
	$(BIN)/python deploy/grafana/dashboard.py > build/orbit-dashboard.json
	@echo build/orbit-dashboard.json

# Most tests wait for processes and sockets: more of them at once than there are cores.
test: .venv/ready page
	$(BIN)/pytest -n 4 --dist worksteal --durations=20

# Real workers of Celery, RQ, Dramatiq, Huey, Taskiq, arq and APScheduler.
test-frameworks: .venv/ready $(FRAMEWORKS)
	$(BIN)/pytest tests/frameworks -n 4 --dist worksteal

# The image, built by docker or by buildah (Debian: buildah, debootstrap, bubblewrap), for root.
test-image: .venv/ready
	folder=$$(mktemp --directory) && trap 'rm -rf "$$folder"' EXIT \
		&& tests/deploy/build_image.sh "$$folder" \
		&& CI=true ORBIT_TEST_IMAGE="$$folder" $(BIN)/pytest -s tests/deploy/test_image.py

# The long form of tests/acceptance/test_chaos.py: N random kills in a row. Without a SEED
# one is drawn; it is printed, and a round that fails says how to run it again.
N ?= 200
SEED ?=
chaos: .venv/ready
	$(BIN)/python tests/acceptance/chaos.py --kills $(N) $(if $(SEED),--seed $(SEED))

# What it costs, beside its peers: the table of benchmarks/RESULTS.md, or a look in two minutes.
# ONLY="calls flood" measures these groups and writes nothing. netdata's and collectd's statsd
# (Debian: netdata, collectd-core) are measured where they are installed.
ONLY ?=
BENCH := $(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))
bench: .venv/ready .bench/ready
	$(BENCH) --scale full $(if $(ONLY),,--write benchmarks/RESULTS.md)
bench-quick: .venv/ready .bench/ready
	$(BENCH) --scale quick

check: .venv/ready page $(FRAMEWORKS) .pm2/ready .clients/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python hatch_build.py check
	$(BIN)/lint-imports
	$(BIN)/pytest -n 4 --dist worksteal --durations=20

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Everything comes from requirements.lock, with hashes; the build back-end too.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	HATCH_BUILD_NO_HOOKS=true $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
	touch $@

.frameworks/%/ready: tests/frameworks/%.lock
	$(PYTHON) -m venv .frameworks/$*
	.frameworks/$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

.bench/ready: benchmarks/peers.lock
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# For its test alone. npm chooses what it depends on; that is not locked.
.pm2/ready:
	$(NPM) --prefix .pm2 pm2@7.0.4
	touch $@

# For tests/clients: two versions of tRPC, which share no folder; what they depend on is not locked.
NPM := npm install --silent --no-audit --no-fund --no-save --no-package-lock
.clients/ready:
	$(NPM) --prefix .clients/10 @trpc/client@10.45.4 @trpc/server@10.45.4 superjson@2.2.6
	$(NPM) --prefix .clients/11 @trpc/client@11.25.2 @trpc/server@11.25.2 superjson@2.2.6 \
		typescript@5.9.3
	touch $@

# After a change of the dependencies in pyproject.toml, tests/frameworks or benchmarks; needs uv.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header --quiet
lock:
	$(COMPILE) pyproject.toml --extra service --extra pipelines --extra otlp --group dev \
		-o requirements.lock
	$(COMPILE) tests/frameworks/shared.in -o tests/frameworks/shared.lock
	$(COMPILE) tests/frameworks/arq.in -o tests/frameworks/arq.lock
	$(COMPILE) benchmarks/peers.in -o benchmarks/peers.lock

clean:
	rm -rf .venv .frameworks .bench .pm2 .clients .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache \
		$(PAGE)/dist $(PAGE)/node_modules
