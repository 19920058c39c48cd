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
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-25s %s\n", $$1, $$2}'

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
	$(PYTEST) -m "not slurm and not ray and not tune and not chromium and not latex and not release"

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

# FULL=1 installs every dependency anew, torch and all, which is gigabytes
release-check: setup  ## build what would be released, install it elsewhere, run the quick tour there; metadata, licences
	$(if $(FULL),FSR_RELEASE_FULL=1) $(PYTEST) -m release tests/release -n 0
.PHONY: release-check

# PYTHONS='3.12 3.13' TORCHES=oldest TESTS=tests/unit/test_fsr.py: a part of it
PYTHONS ?= 3.11 3.12 3.13
TORCHES ?= oldest newest
TESTS ?= tests/unit tests/contract tests/house
matrix:  ## tests under every promised Python and torch that this machine has; gigabytes and an hour each
	$(PYTHON) tests/release/matrix.py $(TESTS) --python $(PYTHONS) --torch $(TORCHES)
.PHONY: matrix

docs: setup  ## build the documentation into site/, links checked
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
.PHONY: docs

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
ablate = $(BIN)/fsr train hparams_search=$(1)_grid experiment=table1_cifar10/resnet18_fsr_at seed=$(SEEDS) scale=$(SCALE) \
	launcher=$(LAUNCHER) name=$(SCALE)_$(1) $(ARGS)
# every run of some experiments, evaluated into the folder SCALE_$(1); what is there already is not evaluated again
evaluate = for run in $(foreach row,$(2),$(RUNS)/$(SCALE)/$(row)/*/); do \
		to=$(RUNS)/$(SCALE)_$(1)/$${run\#$(RUNS)/$(SCALE)/}; test -f "$$to/records/evaluation.json" || \
		$(BIN)/fsr evaluate run="$$run" $(3) hydra.run.dir="'$$to'" || exit; \
	done
# the page of an artefact from the runs at hand; what is to stay is kept by experiments/keep.py
report = $(BIN)/fsr report experiments/$(1) runs=$(RUNS) out=$(RUNS)/$(SCALE)_reports/$(1)

HOWS := at fsr_at trades fsr_trades mart fsr_mart
ROWS := $(foreach how,$(HOWS),table1_cifar10/resnet18_$(how))
TABLES := table1 table2 table3 table4 table5 table6 table7
ABLATIONS := ablation-lambda ablation-tau ablation-layer ablation-gumbel ablation-yprime ablation-map
SUPPLEMENTS := supplement-wrn34-10 supplement-cifar100 supplement-tiny-imagenet supplement-features
.PHONY: $(TABLES) figure1 ablations $(ABLATIONS) $(SUPPLEMENTS)

table1: setup  ## ResNet-18 on CIFAR-10 and SVHN: AT, TRADES, MART, each without and with FSR
	$(call train,$(ROWS) $(foreach how,$(HOWS),table1_svhn/resnet18_$(how)))
	$(call report,table1)

table2: setup  ## the same for VGG16
	$(call train,$(foreach how,$(HOWS),table2_cifar10/vgg16_$(how) table2_svhn/vgg16_$(how)))
	$(call report,table2)

# a smoke test has no time for AutoAttack and queries: a glance at transfers is all
BLACKBOX_smoke := evaluation=transfer test_samples=20
BLACKBOX_cpu := evaluation=[blackbox,transfer] test_samples=1000 crafting@crafting.evaluate=fast
BLACKBOX_paper := evaluation=[blackbox,transfer] test_samples=1000
AUTOATTACK_smoke :=
AUTOATTACK_cpu := evaluation=autoattack test_samples=1000 crafting@crafting.evaluate=fast
AUTOATTACK_paper := evaluation=autoattack
autoattack = $(if $(AUTOATTACK_$(SCALE)),$(call evaluate,autoattack,$(1),$(AUTOATTACK_$(SCALE))))
SURROGATE = surrogate=$(RUNS)/$(SCALE)/table3/resnet50_natural/seed=0

table3: setup  ## black-box attacks and AutoAttack on Table 1's CIFAR-10 networks, from a natural ResNet-50
	$(call train,$(ROWS) table3/resnet50_natural)
	$(call evaluate,table3,$(ROWS),$(SURROGATE) $(BLACKBOX_$(SCALE)))
	$(call evaluate,table3_linf_16,$(ROWS),$(SURROGATE) threat=linf_16 evaluation=transfer $(filter-out evaluation=%,$(BLACKBOX_$(SCALE))))
	$(call autoattack,$(ROWS))
	$(call report,table3)

ROWS4 := table1_cifar10/resnet18_at $(foreach how,fd cas cifs,table4/resnet18_$(how)_at) table1_cifar10/resnet18_fsr_at
table4: setup  ## AT with FSR beside FD, CAS and CIFS
	$(call train,$(ROWS4))
	$(call autoattack,$(ROWS4))
	$(call report,table4)

SAMPLES_smoke := test_samples=20 evaluation=quick
SAMPLES_cpu := test_samples=2000 evaluation=[paper,autoattack] crafting@crafting.evaluate=fast
SAMPLES_paper := evaluation=[paper,autoattack]

table5: setup  ## each part of FSR's features alone: under attack, and by its nearest neighbours
	$(call train,table1_cifar10/resnet18_fsr_at)
	for run in $(RUNS)/$(SCALE)/table1_cifar10/resnet18_fsr_at/*/; do for how in feature_swap knn; do \
		$(BIN)/fsr analyze run="$$run" analysis=$$how $(SAMPLES_$(SCALE)) \
			hydra.run.dir="'$(RUNS)/$(SCALE)_table5/$${run#$(RUNS)/$(SCALE)/}'" || exit; \
	done; done
	$(call report,table5)

ROWS6 := table1_cifar10/resnet18_at table1_cifar10/resnet18_fsr_at \
	$(foreach how,fsr_wo_sep fsr_wo_rec capacity auxiliary,table6/resnet18_$(how)_at)
table6: setup  ## FSR without Separation, without Recalibration; controls of capacity and of the auxiliary loss
	$(call train,$(ROWS6))
	$(call autoattack,$(ROWS6))
	$(call report,table6)

table7: setup  ## parameters and FLOPs, counted: one scale for all
	$(BIN)/fsr cost experiment=table7 hydra.run.dir=$(RUNS)/table7

figure1: setup  ## attention maps of a natural network and of FSR's parts
	$(call train,figure1/resnet18_natural table1_cifar10/resnet18_fsr_at)
	$(BIN)/fsr analyze run=$(RUNS)/$(SCALE)/table1_cifar10/resnet18_fsr_at/seed=0 analysis=attention \
		other=$(RUNS)/$(SCALE)/figure1/resnet18_natural/seed=0 \
		hydra.run.dir="'$(RUNS)/$(SCALE)_figure1/table1_cifar10/resnet18_fsr_at/seed=0'"
	$(call report,figure1)

ablations: $(ABLATIONS)  ## all of them

ablation-lambda: setup  ## the weights of FSR's two losses against each other
	$(call ablate,lambda)
	$(call report,ablation_lambda)

ablation-tau: setup  ## the temperature of the masks
	$(call ablate,tau)
	$(call report,ablation_tau)

ablation-layer: setup  ## where FSR stands
	$(call ablate,layer)
	$(call report,ablation_layer)

ablation-gumbel: setup  ## Gumbel masks beside plain, tempered and hard ones
	$(call ablate,gumbel)
	$(call report,ablation_gumbel)

ablation-yprime: setup  ## which wrong class f- must tell
	$(call ablate,yprime)
	$(call report,ablation_yprime)

ablation-map: setup  ## what takes the robustness map's place
	$(call ablate,map)
	$(BIN)/fsr train -m experiment=table1_cifar10/resnet18_fsr_at seed=$(SEEDS) scale=$(SCALE) launcher=$(LAUNCHER) \
		name=$(SCALE)_map defense.module.mask=ones defense.module.use_rec=false $(ARGS)
	$(call report,ablation_map)

# Table 1's rows with another network or other images; at the scales that have these
supplement = $(BIN)/fsr train -m experiment=$(call commas,$(2)) name=$(SCALE)_$(1) seed=$(SEEDS) scale=$(SCALE) \
	launcher=$(LAUNCHER) $(3) $(ARGS)

supplement-wrn34-10: setup  ## WRN-34-10 on CIFAR-10; SCALE=paper
	$(call supplement,wrn34_10,$(filter-out %fsr_at %fsr_trades %fsr_mart,$(ROWS)),model=wrn34_10)
	$(call supplement,wrn34_10,$(filter %fsr_at %fsr_trades %fsr_mart,$(ROWS)),model=wrn34_10 defense.module.width=64)
	$(call report,supplement_wrn34_10)

supplement-cifar100: setup  ## ResNet-18 on CIFAR-100; SCALE=cpu|paper
	$(call supplement,cifar100,$(ROWS),dataset=cifar100)
	$(call report,supplement_cifar100)

supplement-tiny-imagenet: setup  ## ResNet-18 on Tiny ImageNet; SCALE=cpu|paper
	$(call supplement,tiny_imagenet,$(ROWS),dataset=tiny_imagenet)
	$(call report,supplement_tiny_imagenet)

LOOKED_AT := table1_cifar10/resnet18_fsr_at table1_cifar10/resnet18_at
supplement-features: setup  ## masks, and how far an attack moves features, with FSR and without
	$(call train,$(LOOKED_AT))
	for run in $(foreach row,$(LOOKED_AT),$(RUNS)/$(SCALE)/$(row)/*/); do for how in mask_maps feature_distance; do \
		case $$how$$run in mask_maps*/resnet18_at/*) continue;; esac; \
		$(BIN)/fsr analyze run="$$run" analysis=$$how $(SAMPLES_$(SCALE)) \
			hydra.run.dir="'$(RUNS)/$(SCALE)_features/$${run#$(RUNS)/$(SCALE)/}'" || exit; \
	done; done
	$(call report,supplement_features)

pages: setup  ## every artefact's page in experiments/, and the README's results, from the records kept there
	for folder in experiments/*/manifest.yaml; do $(BIN)/fsr report $$(dirname $$folder) > /dev/null || exit; done
	$(BIN)/fsr report experiments/adaptive > /dev/null
	$(BIN)/python experiments/readme.py

test-pages: setup  ## the tests of pages in Chromium and of tables in LaTeX; installs both where apt-get is at hand
	@command -v chromium > /dev/null && command -v pdflatex > /dev/null || \
		apt-get install -y --no-install-recommends chromium fonts-dejavu-core texlive-latex-base texlive-latex-recommended
	$(BIN)/python -m pytest -m "chromium or latex"
.PHONY: ablations pages test-pages

smoke: setup  ## does training run at all? two epochs of two batches on the toy data
	$(BIN)/fsr train dataset=toy model=tiny_cnn trainer=smoke name=smoke evaluation=quick

clean:  ## remove the environment and caches; data and runs stay
	rm -rf $(VENV) .venv-ray .venv-tune .matrix build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
