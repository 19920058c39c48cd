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
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

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

# The paper's tables and the supplementary ablations: SCALE=smoke (digits, minutes) | cpu (real images, narrow networks) |
# paper; LAUNCHER=local|joblib_gpus|slurm|ray; SEEDS=0,1,2; ARGS='any overrides'. A run is a directory of runs/SCALE,
# which the tables share: what is finished is not run again.
SCALE ?= smoke
LAUNCHER ?= local
SEEDS ?= 0
ARGS ?=
RUNS := $(or $(FSR_RUNS),runs)
comma := ,
commas = $(subst $(eval ) ,$(comma),$(strip $(1)))
train = $(BIN)/fsr train -m experiment=$(call commas,$(1)) name=$(SCALE) seed=$(SEEDS) scale=$(SCALE) launcher=$(LAUNCHER) $(ARGS)
# one FSR row of Table 1, and what is varied of it
ablate = $(BIN)/fsr train -m $(or $(2),hparams_search=$(1)_grid) experiment=table1_cifar10/resnet18_fsr_at seed=$(SEEDS) scale=$(SCALE) \
	launcher=$(LAUNCHER) name=$(SCALE)_$(1) hydra.sweep.subdir='$${hydra:job.override_dirname}' $(ARGS)

HOWS := at fsr_at trades fsr_trades mart fsr_mart
TABLES := table1 table2 table3 table4 table5 table6 table7
ABLATIONS := ablation-lambda ablation-tau ablation-layer ablation-gumbel ablation-yprime ablation-map
.PHONY: $(TABLES) figure1 ablations $(ABLATIONS)

table1: setup  ## ResNet-18 on CIFAR-10 and SVHN: AT, TRADES, MART, each without and with FSR
	$(call train,$(foreach how,$(HOWS),table1_cifar10/resnet18_$(how) table1_svhn/resnet18_$(how)))

table2: setup  ## the same for VGG16
	$(call train,$(foreach how,$(HOWS),table2_cifar10/vgg16_$(how) table2_svhn/vgg16_$(how)))

# the paper's black-box attacks and AutoAttack; a glance at transfers is what a smoke test has time for
BLACKBOX_smoke := evaluation=transfer
BLACKBOX_cpu := evaluation=[blackbox,autoattack] test_samples=1000 crafting@crafting.evaluate=fast
BLACKBOX_paper := evaluation=[blackbox,autoattack] test_samples=1000

table3: setup  ## black-box attacks and AutoAttack on Table 1's CIFAR-10 networks, from a natural ResNet-50
	$(call train,$(foreach how,$(HOWS),table1_cifar10/resnet18_$(how)) table3/resnet50_natural)
	for run in $(foreach how,$(HOWS),$(RUNS)/$(SCALE)/table1_cifar10/resnet18_$(how)/*/); do \
		$(BIN)/fsr evaluate run="$$run" surrogate=$(RUNS)/$(SCALE)/table3/resnet50_natural/seed=0 \
			$(BLACKBOX_$(SCALE)) hydra.run.dir="'$(RUNS)/$(SCALE)_table3/$${run#$(RUNS)/$(SCALE)/}'" || exit; \
	done
	$(BIN)/fsr report $(RUNS)/$(SCALE)_table3

table4: setup  ## AT with FSR beside FD, CAS and CIFS
	$(call train,table1_cifar10/resnet18_at table1_cifar10/resnet18_fsr_at $(foreach how,fd cas cifs,table4/resnet18_$(how)_at))

SAMPLES_smoke := test_samples=20 evaluation=quick
SAMPLES_cpu := test_samples=2000 evaluation=[paper,autoattack] crafting@crafting.evaluate=fast
SAMPLES_paper := evaluation=[paper,autoattack]

table5: setup  ## each part of FSR's features alone: under attack, and by its nearest neighbours
	$(call train,table1_cifar10/resnet18_fsr_at)
	for run in $(RUNS)/$(SCALE)/table1_cifar10/resnet18_fsr_at/*/; do for how in feature_swap knn; do \
		$(BIN)/fsr analyze run="$$run" analysis=$$how $(SAMPLES_$(SCALE)) \
			hydra.run.dir="'$(RUNS)/$(SCALE)_table5/$${run#$(RUNS)/$(SCALE)/}'" || exit; \
	done; done

table6: setup  ## FSR without Separation, and without Recalibration
	$(call train,table1_cifar10/resnet18_at table1_cifar10/resnet18_fsr_at $(foreach how,sep rec,table6/resnet18_fsr_wo_$(how)_at))

table7: setup  ## parameters and FLOPs, counted: one scale for all
	$(BIN)/fsr cost experiment=table7 hydra.run.dir=$(RUNS)/table7

figure1: setup  ## attention maps of a natural network and of FSR's parts
	$(call train,figure1/resnet18_natural table1_cifar10/resnet18_fsr_at)
	$(BIN)/fsr analyze run=$(RUNS)/$(SCALE)/table1_cifar10/resnet18_fsr_at/seed=0 analysis=attention \
		other=$(RUNS)/$(SCALE)/figure1/resnet18_natural/seed=0 hydra.run.dir=$(RUNS)/$(SCALE)_figure1

ablations: $(ABLATIONS)  ## all of them

ablation-lambda: setup  ## the weights of FSR's two losses against each other
	$(call ablate,lambda)

ablation-tau: setup  ## the temperature of the masks
	$(call ablate,tau)

ablation-layer: setup  ## where FSR stands
	$(call ablate,layer)

ablation-gumbel: setup  ## Gumbel masks beside plain, tempered and hard ones
	$(call ablate,gumbel)

ablation-yprime: setup  ## which wrong class f- must tell
	$(call ablate,yprime)

ablation-map: setup  ## what takes the robustness map's place
	$(call ablate,map)
	$(call ablate,map,defense=fsr_wo_rec defense.module.mask=ones defense.module.wrong=none)

smoke: setup  ## does training run at all? two epochs of two batches on the toy data
	$(BIN)/fsr train dataset=toy model=tiny_cnn trainer=smoke name=smoke evaluation=quick

clean:  ## remove the environment and caches; data and runs stay
	rm -rf $(VENV) .venv-ray .venv-tune build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
