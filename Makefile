# `make` alone lists the targets. PYTHON is what builds .venv; PIP_ARGS go to pip, e.g. for PyTorch
# without CUDA: make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=

BIN := .venv/bin
READY := .venv/installed
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1
RECIPES := $(patsubst recipes/%.py,%,$(wildcard recipes/*.py))
EXTRA := cell_integration  # needs more than requirements.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo list doctor sweep leaderboard repro repro-check results docs examples test golden \
	slow crash-test check format smoke bench bench-gpu \
	new-recipe $(RECIPES)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo '  <recipe>     one of: $(RECIPES); flags go into ARGS="..."'

setup: $(READY) ## make .venv with the pinned versions

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "mgen needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -r requirements.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY) ## train and test on bundled data, a minute on a CPU
	$(BIN)/python recipes/sequence_regression.py --adapter conv --train.epochs 8

list: $(READY) ## backbones, adapters, data sets, recipes
	$(BIN)/mgen list

doctor: $(READY) ## versions, devices, launcher, caches, what is offline
	$(BIN)/mgen doctor $(ARGS)

sweep: $(READY) ## what is missing of a sweep: make sweep SWEEP=recipes/configs/sweeps/promoters.yaml
	@test -n '$(SWEEP)' || { echo 'make sweep SWEEP=<a file as in docs/sweeps.md>' >&2; exit 2; }
	$(BIN)/mgen sweep $(SWEEP) $(ARGS)

leaderboard: $(READY) ## models compared: make leaderboard BOARD=recipes/configs/leaderboard/quick.yaml
	@test -n '$(BOARD)' || { echo 'make leaderboard BOARD=<a file of recipes/configs/leaderboard>' >&2; exit 2; }
	$(BIN)/mgen leaderboard $(BOARD) $(ARGS)

repro: $(READY) ## one published experiment: make repro EXP=flip_gb1_two_vs_rest
	@test -n '$(EXP)' || { $(BIN)/mgen list experiments; \
	    echo 'make repro EXP=<one of these names>' >&2; exit 2; }
	$(BIN)/mgen repro $(EXP)

repro-check: $(READY) ## two steps of every published experiment, in small and offline
	$(BIN)/mgen repro --check $(EXP)

results: $(READY) ## published experiments without a result, then docs/results.md
	$(BIN)/mgen repro

docs: $(READY) ## run the commands of README.md and docs/ whose output is shown there
	$(BIN)/python docs/refresh.py

examples: $(READY) ## write the example files that the pages of docs/ name into this folder
	$(BIN)/python docs/refresh.py --examples .

test: $(READY) ## all quick tests, offline
	$(OFFLINE) $(BIN)/pytest -q -n 2 --dist loadfile $(ARGS)

golden: $(READY) ## comparisons with the reference fixtures ($MGEN_GOLDEN, default tests/golden)
	$(OFFLINE) $(BIN)/pytest -q -k golden $(ARGS)

slow: $(READY) ## tests that take longer
	$(OFFLINE) $(BIN)/pytest -q -m slow $(ARGS)

crash-test: $(READY) ## kill training runs and resume them
	$(OFFLINE) $(BIN)/pytest -q -m crash $(ARGS)

check: $(READY) ## formatting, lint, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(OFFLINE) $(BIN)/pytest -q tests/test_layers.py

format: $(READY) ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

smoke: $(READY) ## every recipe, two steps
	@set -e; out=$$(mktemp -d); for recipe in $(filter-out $(EXTRA),$(RECIPES)); do \
	    grep -q 'mgen.train import' recipes/$$recipe.py && flags="--train.max-steps 2 --out $$out" || flags=; \
	    echo "== $$recipe $$flags"; \
	    $(OFFLINE) $(BIN)/python recipes/$$recipe.py $$flags $(ARGS); \
	done; rm -rf "$$out"

bench: $(READY) ## speed and memory, as JSON
	$(OFFLINE) $(BIN)/python -m tests.benchmarks

bench-gpu: $(READY) ## training and embedding on a GPU, as JSON
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.gpu

new-recipe: ## start recipes/$(NAME).py from sequence_regression: make new-recipe NAME=my_task
	@echo '$(NAME)' | grep -qE '^[a-z][a-z0-9_]*$$' || \
	    { echo 'make new-recipe NAME=my_task: a name in lower case' >&2; exit 2; }
	@test ! -e recipes/$(NAME).py || { echo 'recipes/$(NAME).py is there already' >&2; exit 2; }
	@class=$$(echo $(NAME) | \
	    awk -F_ '{for (i = 1; i <= NF; i++) printf "%s", toupper(substr($$i, 1, 1)) substr($$i, 2)}'); \
	sed -e "s/SequenceRegression/$$class/g" -e 's/sequence_regression/$(NAME)/g' \
	    recipes/sequence_regression.py > recipes/$(NAME).py
	@echo 'recipes/$(NAME).py: change what differs, then make $(NAME)'

$(RECIPES): %: recipes/%.py $(READY)
	$(BIN)/python $< $(ARGS)
