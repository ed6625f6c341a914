# Every target makes its own .venv, installs what it needs at the versions of requirements.lock, and runs from a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint requirements.lock
SOURCES := src tests scripts benchmarks conftest.py

.DEFAULT_GOAL := help
.PHONY: help install test check format-check lint types layers sizes tests data format demo studies bench mutation clean

help:  ## print what each target does
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' Makefile | expand -t 22

install: .venv/installed  ## set up .venv with the tested versions of everything

test: format-check lint types layers sizes tests  ## all that CI runs: format, lint, types, layers, sizes, tests, doctests, docs

check: test  ## the same as test

format-check: .venv/installed
	$(BIN)/ruff format --check $(SOURCES)

lint: .venv/installed
	$(BIN)/ruff check $(SOURCES)

types: .venv/installed
	$(BIN)/mypy

layers: .venv/installed
	$(BIN)/lint-imports

sizes: .venv/installed
	$(BIN)/python scripts/sizes.py

tests: .venv/installed data
	rm -f .coverage .coverage.* coverage.json
	$(BIN)/pytest --numprocesses 2 --dist worksteal --cov --cov-report=term --cov-report=json --durations=10
	$(BIN)/python scripts/ratchet.py

# Without the data its tests are skipped and say so; the rest of the library is still worth testing.
data: .venv/installed
	@$(BIN)/python -m pollard data get mnist || { \
		echo; \
		echo '*** MNIST could not be fetched (reason above): THE TESTS THAT TRAIN ON IT WILL BE SKIPPED. ***'; \
		echo; \
	} >&2

format: .venv/installed  ## format the code and fix what the linter can fix
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

demo: .venv/installed data  ## LeNet-300-100 on MNIST: prune to 5 %, train truly sparse, compare with its dense twin
	$(BIN)/pollard train --data mnist --model lenet-300-100 --method snip --density 0.05 --epochs 10 --seed 0 \
		--out runs --compare dense

studies: .venv/installed data  ## the studies behind docs/, seven hours on two cores; goes on where it was stopped
	@echo 'About seven hours on two cores, more than half of it those on CIFAR-10. Stop it at any moment: the same command goes on.'
	$(BIN)/pollard data get fashion-mnist cifar-10
	for study in mnist fashion scratch ablations values budgets when curves never-dense collapse aims-before aims-after aims-convolutions inputs-after alternating dynamic \
		exchange set-annealed grain-linear grain-time grain-convolutions grain-time-convolutions before-mnist before-fashion cifar-resnet-20 cifar-vgg-16; do \
		$(BIN)/pollard study studies/$$study.toml --out runs/studies/$$study || exit 1; \
		$(BIN)/pollard report runs/studies/$$study --html runs/studies/$$study.html --json studies/results/$$study.json \
			|| exit 1; \
	done
	$(BIN)/python benchmarks/grains.py
	$(BIN)/python benchmarks/budgets.py
	$(BIN)/python benchmarks/connectivity.py
	$(BIN)/python scripts/figures.py
	$(BIN)/python scripts/pictures.py

bench: .venv/bench  ## time kernels and training steps against dense torch, torch.sparse, scipy and MKL
	MKL_RT=$$(echo $(CURDIR)/.venv/lib/libmkl_rt.so.*) $(BIN)/python benchmarks/run.py

mutation: .venv/installed  ## small wrong changes to methods, rules and choices, and which of them no test notices; an hour
	nice $(BIN)/python scripts/mutation.py

clean:  ## remove .venv and what the tools leave behind; runs and data stay
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f .coverage .coverage.* coverage.json
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pollard needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo 'Installing into .venv: a minute or two the first time.'
	$(PYTHON) -m venv .venv
	$(PIP) setuptools
	$(PIP) --no-build-isolation --editable '.[test,ray,report]'
	@touch $@

.venv/bench: .venv/installed
	$(PIP) --no-build-isolation --editable '.[bench]'
	@touch $@
