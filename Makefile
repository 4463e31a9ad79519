# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
TESTERS ?= $(shell echo $$(($(WORKERS) + 2)))# tests wait for processes of their own, more than half of their time
DATASET ?= digits
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test test-all test-gpu test-oldest docs bench check execute readme clean

help:            ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/.installed: settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

demo: $(BIN)/.installed     ## sweep SGD, Adam and RMSProp on real images (DATASET=digits or fashionmnist)
	robustnb sweep sweeps/demo.toml $(if $(filter-out digits,$(DATASET)),--set dataset=$(DATASET)) --workers $(WORKERS)

test: $(BIN)/.installed     ## all notebooks by nbdev_test, and what notebooks cannot show
	OMP_NUM_THREADS=1 pytest -n $(TESTERS)

test-all: $(BIN)/.installed ## the same with the long cross-checks
	OMP_NUM_THREADS=1 pytest -n $(TESTERS) -m ''

test-gpu: $(BIN)/.installed ## on a machine with a GPU: tests and speed there, in under ten minutes
	bash tools/gpu.sh

OLDEST := .venv-oldest
test-oldest:     ## the tests with the oldest libraries that settings.ini allows, in an environment of their own (6 GB)
	$(PYTHON) -m venv $(OLDEST)
	sed -n 's/^requirements = //p' settings.ini | tr ' ' '\n' | sed 's/\[.*\]//; s/,.*//; s/>=/==/' > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/pip install -q -c $(OLDEST)/oldest.txt -e '.[dev]'
	PATH=$(CURDIR)/$(OLDEST)/bin:$$PATH OMP_NUM_THREADS=1 pytest -n $(WORKERS)

bench: $(BIN)/.installed    ## speed against the plain way, side by side
	for b in bench/bench_*.py; do python $$b || exit 1; done

docs: $(BIN)/.installed     ## render the book to _docs/
	python tools/docs.py

execute: $(BIN)/.installed  ## run the notebooks whose code changed, in place
	nbdev_export
	python tools/notebooks.py execute $(NB)

readme: $(BIN)/.installed   ## write README.md from nbs/index.ipynb
	python tools/notebooks.py readme

check: $(BIN)/.installed    ## modules in sync, notebooks executed and clean, README current
	nbdev_export && git diff --exit-code -- robustnb
	test -z "$$(git status --porcelain -- robustnb nbs)" || { git status --short -- robustnb nbs; exit 1; }
	nbdev_clean && git diff --exit-code -- nbs
	python tools/notebooks.py check
	python tools/notebooks.py readme --check

clean:           ## remove what the docs and tests left behind
	rm -rf _docs _proc .pytest_cache .hypothesis build *.egg-info
