# Everything a newcomer needs: `make quickstart` trains, `make test` checks.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# 12: for GPUs older than Turing, or drivers older than 580 (docs/gpu.md).
CUDA ?= 13
# pip compiles on one core what takes a minute and a half; below all cores do it.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup quickstart test test-long test-all test-root test-gpu bench-gpu lint types format \
  reference docs figures clean

help:
	@echo "make setup       make the environment $(VENV), with the vggdist command in it;"
	@echo "                 CUDA=12 for GPUs older than Turing, or drivers older than 580"
	@echo "make quickstart  train on the built-in data set with two ranks, some minutes on two cores"
	@echo "make test        the tests that take seconds, some minutes on two cores"
	@echo "make test-long   those that start several ranks, or take longer"
	@echo "make test-all    both: every test that needs neither root nor a GPU"
	@echo "make test-root   tests that need root, and the Debian packages that .ci/run installs"
	@echo "make test-gpu    tests that need an NVIDIA GPU, ten minutes at most; see docs/gpu.md"
	@echo "make bench-gpu   measure the GPU, into gpu.json; DATA=/path/to/images for real ones"
	@echo "make docs        the pages of docs/ as a site, build/docs/index.html; every link must hold"
	@echo "make reference   write the configuration's and the commands' reference in docs/ anew"
	@echo "make figures     draw the pictures of images/ anew"
	@echo "make lint types  ruff and mypy;  make format  rewrites"

setup: $(VENV)/.with-cuda$(CUDA)

$(VENV)/.with-cuda$(CUDA): requirements.lock requirements-cuda12.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vggdist needs Python 3.11 or newer; name one: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
ifeq ($(CUDA),12)
	grep -vE '^(cuda|nvidia|torch|triton)' requirements.lock > $(VENV)/rest.txt
	$(PIP) -r requirements-cuda12.txt -r $(VENV)/rest.txt
else
	$(PIP) -r requirements.lock
endif
	$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true  # some files are templates
	@touch $@

quickstart: setup
	vggdist prepare digits --out datasets/digits
	vggdist train --ranks 2 --config configs/quickstart.yaml

# A test's process computes in one thread: two that share a core would wait for each other.
PARALLEL := OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 8 --dist worksteal
SPECIAL := slurm or netns or gpu
LONG := slow or multi_process

test: setup
	$(PARALLEL) -m "not ($(LONG)) and not ($(SPECIAL))"

test-long: setup
	$(PARALLEL) -m "($(LONG)) and not ($(SPECIAL))"

test-all: test test-long

# By files: each process has a cluster of its own, and an experiment is run once.
test-root: setup
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile -m "slurm or netns"

test-gpu: setup
	pytest tests/gpu -vv --durations=10 --session-timeout=600

bench-gpu: setup
	python tests/benchmarks/gpu.py $(if $(DATA),--data $(DATA))

lint: setup
	ruff check .
	ruff format --check .

types: setup
	mypy

format: setup
	ruff check --fix .
	ruff format .

reference: setup
	python docs/generate.py

docs: setup
	sphinx-build --quiet --fresh-env --fail-on-warning --nitpicky --conf-dir docs . build/docs
	@echo "The site is build/docs/index.html"

figures: setup
	python images/draw.py

clean:
	rm -rf $(VENV) runs datasets build *.egg-info
