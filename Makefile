# fsr-lab: `make run` and `make test` do all the set-up on a fresh machine. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# one compute thread per test process, one process per core: small networks gain nothing from more threads
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint format bench smoke clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "fsr-lab needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# without its own pins, which would pull requests back to 2020; the tests compare with it
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1
	@touch $@

setup: $(VENV)/.ready  ## create .venv with everything that running and testing need
.PHONY: setup

run: setup  ## train an undefended network, AT and AT+FSR on digits, attack all three, print the table
	$(BIN)/fsr train -m name=digits_quick \
		experiment=digits_quick/undefended,digits_quick/at,digits_quick/at_fsr

test: setup  ## the default test suite
	$(PYTEST)

test-all: setup  ## the default suite and the slow tests
	$(PYTEST) -m "not slurm and not ray and not tune"

# Ray and Hydra 1.4 want other versions of what the rest is pinned to: an environment each
.venv-%/.ready: pyproject.toml constraints-%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint constraints-$*.txt --editable '.[dev,$*]'
	@touch $@

test-ray: .venv-ray/.ready  ## jobs on a Ray cluster of this machine
	.venv-ray/bin/python -m pytest -m ray tests/integration/test_ray.py

test-tune: .venv-tune/.ready  ## Optuna studies, killed and shared
	.venv-tune/bin/python -m pytest -m tune tests/integration/test_tune.py

test-slurm: setup  ## jobs under a Slurm of this machine, which Debian's packages are installed for; as root
	command -v slurmctld >/dev/null && command -v munged >/dev/null || \
		apt-get install --yes --no-install-recommends slurm-wlm munge
	$(BIN)/python -m pytest -m slurm tests/integration/test_slurm.py
.PHONY: test-ray test-tune test-slurm
.PRECIOUS: .venv-%/.ready

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff format the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

bench: setup  ## speed ratios, side by side in one process, into experiments/speed; two hours, and fetches CIFAR-10
	$(BIN)/python experiments/speed/bench.py
	$(BIN)/python experiments/speed/precision.py
	$(BIN)/python experiments/speed/evaluation.py

smoke: setup  ## does training run at all? two epochs of two batches on the toy data
	$(BIN)/fsr train dataset=toy model=tiny_cnn trainer=smoke name=smoke evaluation=quick

clean:  ## remove the environment and caches; data and runs stay
	rm -rf $(VENV) .venv-ray .venv-tune build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
