# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
BUNDLE := neuron_em_segmentation
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow bench lint locks site smoke clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## create .venv and install the package with its pinned dependencies

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Overtile needs Python 3.11, 3.12 or 3.13, %s is %d.%d: say make PYTHON=python3.11" % (sys.executable, *v))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

demo: setup  ## synthetic patients through the whole line: index, audit, split, train, evaluate, predict
	rm -rf $(DEMO)/run
	$(BIN)/overtile phantom em $(DEMO)/data --patients 10 --sections 4 --size 192
	$(BIN)/overtile index $(DEMO)/data --name phantom_em --image '{patient}/image.tif' --label '{patient}/label.tif' \
	    --class cell=255 --class membrane=0 --public --out $(DEMO)/data/manifest.json
	$(BIN)/overtile split $(DEMO)/data/manifest.json --fractions 0.6 0.2 0.2 --seed 1
	$(BIN)/overtile audit $(DEMO)/data/manifest.json
	$(BIN)/overtile run $(BUNDLE) training --manifest $(DEMO)/data/manifest.json --output_dir $(DEMO)/run \
	    --epochs 10 --patch 128 --patches_per_case 4 --learning_rate 0.003
	$(BIN)/overtile predict --bundle $(BUNDLE) --input $(DEMO)/data --match '*/image.tif' \
	    --checkpoint $(DEMO)/run/model.pt --output $(DEMO)/labels
	$(BIN)/overtile evaluate --bundle $(BUNDLE) --manifest $(DEMO)/data/manifest.json \
	    --checkpoint $(DEMO)/run/model.pt --output $(DEMO)/run
	$(BIN)/overtile report $(DEMO)/run --out $(DEMO)/report.html
	@echo "Label maps of every patient: $(DEMO)/labels"
	@echo "Look at the runs in a browser: $(BIN)/overtile review $(DEMO)/run"

test: setup  ## the test suite, without the slow proofs, on two processors
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup  ## the proofs that take minutes
	$(BIN)/python -m pytest -m slow

# The benchmarks' peers stand in an environment of their own. nnU-Net's trainers import all their neighbours; those of
# `primus` import timm, and with it torchvision, which fails beside torch's builds for the CPU.
BENCH := .bench
BENCH_OPTIONS = $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

bench: $(BENCH)/.installed  ## speed and memory beside MONAI, nnU-Net, TorchIO and the machine's limit [ONLY=NAME QUICK=1]
	$(BENCH)/bin/python -m tests.benchmarks.harness $(BENCH_OPTIONS)

$(BENCH)/.installed: pyproject.toml requirements.lock tests/benchmarks/peers.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[openvino]' -r tests/benchmarks/peers.txt
	find $(BENCH)/lib -path '*/nnUNetTrainer/*' -name primus -type d -prune -exec rm -rf {} +
	@touch $@

lint: setup  ## ruff, mypy, the layer test, the static check of every bundle
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py
	@for bundle in bundles/*/; do $(BIN)/overtile check $$bundle || exit 1; done

# Where PyTorch keeps its builds for the CPU; TORCH_CPU='--find-links FOLDER' takes them from a folder of wheels.
TORCH_CPU ?= --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
LOCK := pip compile --quiet --no-header --no-annotate --python-version 3.11
HASHES := --python-platform x86_64-manylinux_2_36 --only-binary :all: --generate-hashes -c requirements.lock

locks: setup  ## bring requirements.lock and the image's locks up to pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv $(LOCK) --universal --all-extras pyproject.toml -o requirements.lock
	echo 'torch==2.13.0+cpu' | $(BIN)/uv $(LOCK) $(HASHES) $(TORCH_CPU) pyproject.toml - -o docker/requirements-cpu.lock
	$(BIN)/uv $(LOCK) $(HASHES) pyproject.toml -o docker/requirements-cuda.lock

site:  ## one tar for a site: make site RELEASE=NAME-VERSION.zip KEY=publisher.pub
	bash docker/site/make.sh "$(RELEASE)" "$(KEY)" "$(or $(OUT),.)"

smoke: setup  ## build the container offline and run the line in it, as root, without a daemon
	PYTHON=$(BIN)/python bash docker/smoke_test.sh

clean:  ## remove the environment, the demo and all caches
	rm -rf $(VENV) $(BENCH) $(DEMO) build docker/work docker/context *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
