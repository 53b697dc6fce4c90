# kdrs: `make demo` and `make test` do everything on a fresh machine with Python 3.11+ and a Rust toolchain.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := runs/demo
WHEEL  := target/wheel
OLDEST := target/oldest
GPU    := runs/gpu
COUNTED := $(CURDIR)/target/coverage
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder
CORE_TESTS := $(addprefix tests/test_,$(addsuffix .py,core_oracles core_arguments fault_table_core ranking sampling codes \
	codes_made topk_few catalogue evaluate kernels optim student))

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name 'Cargo.toml')
CORE   := $(VENV)/.built

# without compiled modules every child process of the tests compiles PyTorch's anew: three seconds each
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-oldest coverage check bench gpu reproduce docs wheel manylinux clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdrs needs Python 3.11 or newer; this is " + sys.version)'
	@command -v cargo >/dev/null || { echo "kdrs needs a Rust toolchain: cargo is not on the PATH" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@# what is imported is compiled then; torch alone has thousands of modules that never are
	@$(MEANWHILE) $(BIN)/python -m pip install --quiet --no-compile --group test --group dev; code=$$?; wait; exit $$code
	touch $@

$(CORE): $(STAMP) $(RUST_SOURCES) pyproject.toml
	@$(MEANWHILE) $(BIN)/python -m pip install --quiet --no-compile --editable '.[plots]'; code=$$?; wait; exit $$code
	touch $@

setup: $(CORE)  ## Make .venv and build kdrs into it, in release mode

demo: setup  ## Fetch MovieLens 100K, train a teacher, distil students, print and draw the comparison
	$(BIN)/python examples/demo.py --out $(DEMO)

test: MEANWHILE = cargo test --profile tested --quiet --package kdrs-core --no-run &
test: setup  ## Run all tests, Rust and Python
	cargo test --profile tested --quiet --package kdrs-core
	@# a short folder: messages cut long paths, and tests read them
	folder=$$(mktemp -d) && $(BIN)/python -m pytest $(WORKERS) --basetemp=$$folder && rm -rf $$folder

$(WHEEL)/bin/uv: $(WHEEL)/bin/maturin
	$(WHEEL)/bin/python -m pip install --quiet uv
	touch $@

test-oldest: $(WHEEL)/bin/uv $(RUST_SOURCES)  ## Run the quick tests on Python 3.11 with the oldest allowed versions
	$(WHEEL)/bin/uv venv --quiet --allow-existing --python 3.11 $(OLDEST)
	$(WHEEL)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -r pyproject.toml \
		--extra plots --group test
	rm -rf $(OLDEST)/dist && $(WHEEL)/bin/maturin build --release --locked --out $(OLDEST)/dist
	$(WHEEL)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps --reinstall $(OLDEST)/dist/*.whl
	folder=$$(mktemp -d) && $(OLDEST)/bin/python -m pytest $(filter-out --no-loadscope-reorder,$(WORKERS)) -m 'not slow' \
		--basetemp=$$folder && rm -rf $$folder

coverage: setup  ## Measure which lines the tests run, of Python and of the Rust core
	@cargo llvm-cov --version >/dev/null || { echo "cargo install cargo-llvm-cov, for the figure of Rust" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --group coverage
	folder=$$(mktemp -d) && $(BIN)/python -m pytest $(WORKERS) --basetemp=$$folder --cov=kdrs \
		--cov-report=term --cov-report=xml:target/coverage.xml && rm -rf $$folder
	@# the core by its own tests and by those of Python
	mkdir -p $(COUNTED) && export CARGO_TARGET_DIR=$(COUNTED) && eval "$$(cargo llvm-cov show-env --sh)" && \
		cargo llvm-cov clean --workspace && \
		cargo test --release --quiet --package kdrs-core && \
		cargo build --release --quiet --package kdrs-python --features pyo3/extension-module && \
		cp -r python/kdrs $(COUNTED) && cp $(COUNTED)/release/lib_core.so $(COUNTED)/kdrs/_core.abi3.so && \
		PYTHONPATH=$(COUNTED) $(BIN)/python -m pytest $(WORKERS) -m 'not slow' $(CORE_TESTS) && \
		cargo llvm-cov report --release --summary-only

check: setup  ## Lint, format, types, stubs, Rust lints, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest kdrs._core --ignore-disjoint-bases
	cargo fmt --check
	cargo clippy --release --all-targets --quiet -- -D warnings
	$(BIN)/python tests/docs_check.py
	$(BIN)/python benches/pages.py --check

bench: setup  ## Measure speed against the peers, as ratios
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python benches/run.py

gpu:  ## What there is to see on a GPU, in ten minutes: tests, steps, epochs, evaluation, a training (runs/gpu)
	@# a machine without Rust takes the wheels of `python benches/gpu.py --prepare`, beside the PyTorch of its python3
	if ! command -v cargo >/dev/null && test -d $(GPU)/wheels; then \
		$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $(GPU)/site $(GPU)/wheels/*.whl && \
		PYTHONPATH=$(GPU)/site $(PYTHON) benches/gpu.py $(GPU_FLAGS); \
	else $(MAKE) setup && $(BIN)/python benches/gpu.py $(GPU_FLAGS); fi

reproduce: setup  ## The long trainings behind docs/results (hours; can be interrupted and resumed)
	$(BIN)/python benches/reproduce.py --only student,rrd,de,de+rrd --seeds 0,1,2
	$(BIN)/python benches/trajectories.py --runs runs/reproduce --out docs/results
	$(BIN)/python benches/reproduce.py --only all
	$(BIN)/python benches/comparison.py --runs runs/reproduce --out docs/results/methods.md
	$(BIN)/python benches/pages.py

docs: setup  ## Build the documentation site into target/site
	$(BIN)/python -m pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file website/mkdocs.yml

$(WHEEL)/bin/maturin: pyproject.toml
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet 'maturin>=1.7,<2'
	touch $@

wheel: $(WHEEL)/bin/maturin  ## Build the wheel into dist/, and nothing else
	$(WHEEL)/bin/maturin build --release --locked --out dist

manylinux: $(WHEEL)/bin/maturin  ## Build it for every Linux since glibc 2.17, with zig as linker (400 MB)
	$(WHEEL)/bin/python -m pip install --quiet 'maturin[zig]>=1.7,<2'
	PATH="$(CURDIR)/$(WHEEL)/bin:$$PATH" maturin build --release --locked --out dist \
		--zig --target $$(uname -m)-unknown-linux-gnu --compatibility manylinux2014

clean:  ## Remove what was built; data sets and runs stay
	rm -rf $(VENV) target dist python/kdrs/_core*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
