# `make demo` and `make test` need only python3 (3.11 or later) and make: each makes a
# private environment in $(VENV) first, with what it needs itself and no more.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := bash
comma := ,
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist worksteal -q

.NOTPARALLEL:
.PHONY: demo test test-fast test-types test-wheel test-onnx fuzz test-accelerators docs bench gpu tune tpu lint clean

demo: $(DEMO)  ## train dense, prune to 90 % in 4x16 blocks, print the table
	@$(BIN)/python -m experiments.run --config experiments/configs/demo.py --workdir runs/demo --overwrite

test: $(READY)  ## the whole suite
	$(PYTEST) tests

test-fast: $(READY)  ## what one runs while working: under three minutes
	$(PYTEST) -m "not slow" tests

# jaxtyping compiles the checks in as jaxsparse is imported; tests that provoke an error are
# left out, since an annotation would refuse first.
TYPED = activations graph/test_channels.py graph/test_shrink.py recipes/test_distillation.py \
  recipes/test_movement_config.py recipes/test_statistics.py test_arrays.py test_packed.py \
  test_reports.py test_rules.py test_schedules.py test_sparsify.py test_safetensors.py test_surgery.py
test-types: $(READY)  ## part of the fast part, with every annotation of jaxsparse checked as it runs
	$(PYTEST) -m "not slow" --jaxtyping-packages=jaxsparse,typecheck.checked $(TYPED:%=tests/%)

test-wheel: $(READY)  ## the wheel, built and tested from a folder without the source
	.ci/test-wheel $(BIN)/python

fuzz: $(READY)  ## random products and transforms against float64, in MINUTES (15)
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),15)

# Mosaic GPU needs jax 0.11: what the two Pythons of test and test-fast have may be
# older or newer. `slow` also compiles for an H200, where the CUDA wheels are.
test-accelerators: $(READY) $(VENV)/.cuda  ## the GPU and TPU kernels, interpreted; with VENV=.venv-0.11 on jax 0.11
	$(PYTEST) -m "not slow" tests/kernels tests/test_sparse_dot.py

# Lowering for a GPU takes JAX's plugin alone, not the 400 MB of CUDA that it depends on;
# building against cuSPARSELt takes headers and no compiler of NVIDIA's.
TRITON = $(shell sed -n 's/^triton = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',"')
$(VENV)/.cuda: $(READY)
	version=$$($(BIN)/python -c 'import jax; print(jax.__version__)') \
	  && $(BIN)/python -m pip install -q $(TRITON) nvidia-cusparselt-cu13 nvidia-cuda-runtime nvidia-cuda-crt \
	  && $(BIN)/python -m pip install -q --no-deps "jax-cuda13-plugin==$$version" && touch $@ \
	  || echo "not all of this can be installed here: the tests say what they skip"

# An environment above the usual one, since jax2onnx wants an older orbax-checkpoint. A line
# of a .pth file adds a folder whose packages pip counts as there.
ONNX := .venv-onnx
$(ONNX)/.ready: $(READY)
	$(BIN)/python -m venv $(ONNX)
	for each in $(VENV) $(ONNX); do \
	  $$each/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; done \
	  | { read below; read above; echo "$$below" > "$$above/packages.pth"; }
	$(ONNX)/bin/python -m pip install -q --disable-pip-version-check \
	  $(shell sed -n 's/^onnx = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ,) \
	  onnxruntime==1.32.0 openvino==2026.4.1 && touch $@ \
	  || echo "not all of this can be installed here: the tests say what they skip"

test-onnx: $(ONNX)/.ready  ## files of ONNX, in ONNX Runtime and in OpenVINO
	$(ONNX)/bin/python -m pytest -q tests/export/test_onnx.py tests/experiments/test_bench_serving.py

docs: $(READY)  ## the API reference, from docstrings, in build/docs
	$(BIN)/python docs/reference.py build/docs

bench: $(READY)  ## what the transforms cost on this machine
	$(BIN)/python -m experiments.bench.transforms

# With PYTHON's own packages, since a machine with an accelerator often cannot fetch any:
# jax for it, flax, optax, orbax-checkpoint, jaxtyping, and scikit-build-core.
INSTALL = $(PYTHON) -m pip install -q --no-index --no-deps --no-build-isolation --upgrade --target build/$@ .
PYTHON_ONLY = -Cwheel.cmake=false
MEASURE = PYTHONPATH=build/$@:. $(PYTHON) -P -m experiments.bench.$@

# With CMake and cusparseLt.h the call of cuSPARSELt is built, without them it is left out.
gpu:  ## on an NVIDIA GPU, in ten minutes: is every kernel right, and how fast
	$(INSTALL) -Ccmake.define.JAXSPARSE_CPU=OFF || $(INSTALL) $(PYTHON_ONLY)
	$(MEASURE)

tune:  ## on a Hopper GPU, in ten minutes: the configurations that make gpu then uses
tpu:  ## what make gpu does, on a TPU, with jax[tpu]
tune tpu:
	$(INSTALL) $(PYTHON_ONLY)
	$(MEASURE)

lint: $(READY)
	$(BIN)/python -m pip install -q 'jaxsparse[dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

# pip says hundreds of lines, or with -q nothing for a minute: this shows a line a package,
# and all of it where pip fails.
PIP_INSTALL = set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check $(1) $(WITH) 2>&1 \
  | tee $(VENV)/pip.log | sed -un 's/^ *\(Collecting [^ ]*\|Building editable .*started\|Installing collected packages\).*/   \1/p' \
  || { cat $(VENV)/pip.log; exit 1; }

$(DEMO): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxsparse needs Python 3.11 or later, this is " + sys.version)'
	@echo "1/2 a private environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/2 packages, some 250 MB unless pip has them, and the CPU kernels: a minute or two"
	@$(call PIP_INSTALL,-e '.[demo]')
	@touch $@

# By its name and not by its path, so that pip takes what is installed and compiles nothing.
$(READY): $(DEMO)
	@echo "packages for the tests"
	@$(call PIP_INSTALL,'jaxsparse[experiments$(comma)test]')
	@touch $@

clean:
	rm -rf .venv* build runs
