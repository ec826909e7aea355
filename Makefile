# rankdrift. `make help` lists the targets. A missing .venv is made first.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
DATA ?=
RANKS ?=
STUDY ?= demo
KILLS ?= 200
MINUTES ?= 7
CONFIG ?= ds_configs/zero2.json
METHOD ?= full
EXPERIMENT ?= launch/recipes/demo.yaml
PHASES ?= launch/phases/three_vms.yaml
REAL := $(if $(DATA),data.root=$(DATA) 'data.tasks=[sst2]')

# one set of tools everywhere: DeepSpeed starts ninja and its launcher by name
export PATH := $(BIN):$(PATH)
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help install data demo sanity validate status tensorboard test test-unit faults machines gpu check format docs report clean

help:  ## list the targets
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 14

install: $(READY)  ## make .venv with the tested packages (the other targets do it when it is missing)

$(READY): requirements/lock.txt requirements/install.sh setup.cfg
	@sh requirements/install.sh $(VENV)
	@touch $@

demo: $(READY)  ## full fine-tuning against LoRA on a small real model, to a report (DATA=folder: real SST-2)
	@rankdrift study run --lean --experiment launch/recipes/demo.yaml $(if $(RANKS),--ranks $(RANKS)) \
		$(if $(DATA),study=demo-sst2 data.root=$(DATA) 'data.tasks=[sst2]',study=$(STUDY))

data: $(READY)  ## prepare a recipe's data and say what they are like (EXPERIMENT=recipe, DATA=folder: real SST-2)
	@rankdrift data prepare --experiment $(EXPERIMENT) $(REAL)
	@rankdrift data summary --experiment $(EXPERIMENT) $(REAL)

sanity: $(READY)  ## try a recipe's arms before launching it: gradients, overfitting, seeds, reload (EXPERIMENT=, DATA=, RANKS=)
	@rankdrift check --experiment $(EXPERIMENT) $(if $(RANKS),--ranks $(RANKS)) $(REAL)

phase%: $(READY)  ## one phase of a study, of all its cells or a machine's: make phase2, make phase2-vm1 (PHASES=, DATA=folder)
	@rankdrift phase $(firstword $(subst -, ,$*)) $(if $(findstring -,$*),--machine $(lastword $(subst -, ,$*))) \
		--phases $(PHASES) $(if $(DATA),data.root=$(DATA))

validate: $(READY)  ## all phases end to end on the tiny model
	@for part in '0 vm1' '0 vm2' '1 vm1' '2 vm1' '2 vm2' '3 vm1' '3 vm2' '4 vm1' '4 vm2' '5 vm1' '4b vm1'; do set -- $$part; \
		rankdrift phase $$1 --machine $$2 --phases launch/phases/tiny.yaml || exit; done

status: $(READY)  ## how far a study is (STUDY=demo)
	@rankdrift study status outputs/$(STUDY)

tensorboard: $(READY)  ## show all runs of a study (STUDY=demo)
	@tensorboard --logdir outputs/$(STUDY)

test: $(READY)  ## run all tests, three files at a time, some of which wait (files of long tests come first)
	@HF_HUB_OFFLINE=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=15

test-unit: $(READY)  ## run the tests that start no ranks
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile -m 'not distributed and not e2e'

faults: $(READY)  ## kill a run 200 times at random instants and see that nothing is lost (KILLS=, CONFIG=, METHOD=)
	@folder=$$(mktemp -d) && HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu python tests/distributed/kill_campaign.py $$folder \
		--kills $(KILLS) --config $(CONFIG) --method $(METHOD); status=$$?; rm -rf $$folder; exit $$status

machines: $(READY)  ## test runs on several machines made of network namespaces (root, iproute2, sshd, pdsh, rsync)
	@RANKDRIFT_TEST_MACHINES=all HF_HUB_OFFLINE=1 python -m pytest tests/machines --durations=0

gpu: $(READY)  ## measure on one GPU what there is time for (MINUTES=7)
	@python benchmarks/gpu_all.py --minutes $(MINUTES)

check: $(READY)  ## what CI checks besides the tests: ruff, mypy
	@ruff check .
	@ruff format --check .
	@mypy

format: $(READY)  ## format and sort
	@ruff format .
	@ruff check --fix .

docs: $(READY)  ## the documentation as pages, to site/index.html
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

report: $(READY)  ## draw the report of a study again (STUDY=demo)
	@rankdrift report --again outputs/$(STUDY)

clean:  ## remove what was built and cached (not outputs/, not .venv)
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache src/*.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
