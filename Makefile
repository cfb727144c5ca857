# Two commands for users: `make run` and `make test`. Both install first, into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: components dashboards report install run check check-security sanitize format test test-clients test-full test-gpu bench bench-peers bench-gpu peers demo clean

install: $(STAMP)

# torch is installed first and alone: with it in place the ranges below resolve to it instead of to
# another build. TORCH may name the file of a wheel, or torch with a version of your own.
TORCH ?= torch
$(STAMP): pyproject.toml constraints.txt $(wildcard kernels/cpu_ops/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit("multiflora needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[dev]'
	$(BIN)/python kernels/cpu_ops/build.py
	touch $(STAMP)

run: install
	$(BIN)/multiflora serve

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Known vulnerabilities of the pinned versions, dangerous code, and sbom.cdx.json.
check-security: install
	$(BIN)/python -m tests.outside_security

# The CPU core under the address and undefined-behaviour sanitizers, by its own tests.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
sanitize: export MULTIFLORA_CORE_FLAGS := $(SANITIZERS)
sanitize: install
	$(BIN)/python kernels/cpu_ops/build.py
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 $(BIN)/pytest -q tests/kernels/cpu_ops \
	tests/kernels/test_attention.py tests/kernels/test_elementwise.py tests/kernels/test_lora_linear.py tests/kernels/test_matrix_copy.py \
	tests/kernels/test_sampling.py -k "not triton and not compile"

# Clients that others wrote, each in an environment of its own, against a real server; writes
# docs/clients.md.
test-clients: install
	$(BIN)/python -m tests.clients.proof

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Files side by side, each on one thread: most tests are too small to share out.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

test: install
	$(PYTEST) -m "not full and not gpu"

test-full: install
	$(PYTEST) -m "not gpu"

# Programs that some tests need: Prometheus, unpacked from Debian's package.
components:
	tests/components.sh

# Needs a CUDA device, and a torch that is built for it.
test-gpu: install
	$(BIN)/pytest -m gpu

# Questions that benchmarks answer, one after the other; QUESTIONS=scale,slopes asks some of them.
ASK := $(BIN)/python -m benchmarks.ask $(if $(QUESTIONS),--only $(QUESTIONS))

bench: install
	$(ASK) bench

# The same work done by others in the same run. Whoever cannot be installed is skipped by name.
bench-peers: install
	-$(INSTALL_PEERS)
	$(ASK) bench-peers

# PEFT, TRL, vLLM and llama.cpp into .peers, each in an environment of its own. The last is compiled,
# which takes ten minutes on two cores; whatever is there already stays.
INSTALL_PEERS := PYTHON=$(PYTHON) TORCH="$(TORCH)" benchmarks/install_peers.sh
peers:
	$(INSTALL_PEERS)

# Needs a CUDA device.
bench-gpu: install
	-$(INSTALL_PEERS) peft
	$(ASK) bench-gpu

# docs/benchmarks.md, its pictures, and the figures in README.md and docs/, from committed records.
report: install
	$(BIN)/python -m benchmarks.report.generate

# Grafana's dashboards from deploy/grafana/*.py.
dashboards: install
	$(BIN)/python -m deploy.grafana.generate

demo: install
	$(BIN)/python -m demo.grow

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
