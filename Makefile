# Needs Python 3.11 or newer, git and make. Everything else goes into .venv, from the package index.

VENV := .venv
BIN := $(VENV)/bin
# Installs into the environment of an interpreter, $(call INSTALL,interpreter): by uv where it is found, by pip otherwise.
# Both leave compiling to the first import: most modules of most packages are never imported.
INSTALL = $(if $(shell command -v uv 2>/dev/null),uv pip install --quiet --python $(1),\
    $(1) -m pip install --quiet --disable-pip-version-check --no-compile)
PIP = $(call INSTALL,$(BIN)/python)
# The extra with the JAX of this machine's accelerator.
ACCELERATOR := $(if $(GPU),$(patsubst 1,cuda,$(GPU)))
# Files of tests go to three processes in the order of tests/conftest.py, the longest first: on two cores, since now and
# then one of them waits for a program, a browser or the clock.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
# Linter and formatter look at everything that is Python here.
SOURCES := mixformer_jax eval pretrain configs tests $(wildcard docs/*.py)

# Tests start many processes: where the environment forbids Python to keep what it has compiled, each would compile JAX
# and all other packages anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

# Handed to the shell through the environment, so that no character in a file name can break the command.
export VIDEO BOX

.PHONY: help demo demo-arguments demo-page default-tracker test tests test-fast test-packages lint format docs clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo                            render a clip, track it, leave a video, boxes and a picture'
	@echo 'make demo GPU=1                      the same on a GPU (GPU=cuda12 for older drivers, GPU=tpu on a TPU VM)'
	@echo 'make demo VIDEO=my.mp4 BOX=x,y,w,h   track your own video from a box in its first frame'
	@echo 'make demo-page                       a page in the browser: open a video, draw boxes, watch (http://127.0.0.1:8000)'
	@echo 'make default-tracker                 train a tracker of its size in three stages (hours on a CPU); goes on where it stopped'
	@echo 'make test                            lint, then all tests'
	@echo 'make test-fast                       the quick tests alone, without lint; while you work'
	@echo 'make lint                            ruff, mypy, and who may import whom'
	@echo 'make format                          let ruff mend what it can'
	@echo 'make docs                            the documentation as pages in site/; a broken link fails'
	@echo 'make clean                           remove .venv and caches'

demo: demo-arguments $(VENV)/.demo-installed $(if $(GPU),$(VENV)/.$(ACCELERATOR)-installed)
	@if [ -n "$$VIDEO" ]; then \
	    $(BIN)/mixformer track "$$VIDEO" --box="$$BOX"; \
	else \
	    $(BIN)/mixformer demo; \
	fi

# Before anything is installed.
demo-arguments:
	@case '$(ACCELERATOR)' in ''|cuda|cuda12|tpu) ;; \
	    *) echo "make demo: GPU is 1 (or cuda), cuda12 or tpu" >&2; exit 2;; esac
	@if [ -n "$$VIDEO" ] && [ -z "$$BOX" ]; then \
	    echo "make demo: VIDEO needs BOX=x,y,w,h, the target in the first frame in pixels" >&2; exit 2; \
	elif [ -z "$$VIDEO" ] && [ -n "$$BOX" ]; then \
	    echo "make demo: BOX needs VIDEO=file" >&2; exit 2; \
	fi

demo-page: $(VENV)/.page-installed
	@$(BIN)/mixformer serve --demo

# All three stages, in runs/; their configs name the data.
default-tracker: $(VENV)/.test-installed
	$(BIN)/python pretrain/default_tracker.py

# Environments are installed side by side, and lint runs while the last packages arrive and the tests begin.
test:
	@$(MAKE) --no-print-directory --jobs=4 lint tests

tests: test-packages
	$(PYTEST)

test-fast:
	@$(MAKE) --no-print-directory --jobs=3 test-packages
	$(PYTEST) -m 'not slow'

test-packages: $(VENV)/.test-installed $(VENV)/.aside-installed $(VENV)/vot-toolkit/.installed $(VENV)/.compiled

lint: $(VENV)/.test-installed
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The variable silences a notice on the future of MkDocs.
docs: $(VENV)/.docs-installed
	$(BIN)/python docs/architecture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'site/index.html'

clean:
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of packages: a second call installs nothing until pyproject.toml changes.
# Editable, so that what runs is always what the checkout holds.
$(VENV)/.demo-installed: pyproject.toml | $(VENV)/.created
	@echo 'Installing into $(VENV) (a minute or two) ...'
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.page-installed: pyproject.toml | $(VENV)/.created
	@echo 'Installing into $(VENV) (a minute or two) ...'
	@$(PIP) --editable '.[demo,serve,video]'
	@touch $@

$(VENV)/.cuda-installed $(VENV)/.cuda12-installed $(VENV)/.tpu-installed: $(VENV)/.%-installed: pyproject.toml | $(VENV)/.created
	@echo 'Installing JAX for this accelerator ($*; gigabytes, some minutes) ...'
	@$(PIP) --editable '.[$*]'
	@touch $@

# The test set contains the demo set.
$(VENV)/.test-installed: pyproject.toml | $(VENV)/.created
	@echo 'Installing into $(VENV), test tools and training libraries too (a few minutes) ...'
	@$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.demo-installed

# What cannot share an environment with the rest, each in a folder that tests put on their path.
$(VENV)/.aside-installed: $(VENV)/.test-installed
	@echo 'Installing beside $(VENV) what some tests alone use ...'
	@# OpenCV with all its trackers.
	@$(PIP) --target $(VENV)/contrib --upgrade --no-deps opencv-contrib-python-headless
	@# The other decoder of videos: .venv itself stays as users without it have it, and tests try both.
	@$(PIP) --target $(VENV)/pyav --upgrade --no-deps "$$($(BIN)/python -c \
	    'from importlib.metadata import requires; \
	    print(next(r.partition(";")[0] for r in requires("mixformer-jax") if r.startswith("av")))')"
	@# HOTA and the rest by their own authors; it asks for the OpenCV with windows, which would be laid over ours.
	@$(PIP) --target $(VENV)/trackeval --upgrade --no-deps trackeval==1.3.0
	@# The TPU compiler of this JAX: where it is installed, JAX complains at every start that there is no TPU.
	@$(PIP) --target $(VENV)/tpu-compiler --upgrade --no-deps "$$($(BIN)/python -c \
	    'from importlib.metadata import requires; \
	    print(next(r.partition(";")[0] for r in requires("jax") if r.startswith("libtpu")))')"
	@touch $@

# What tests import is compiled once, while the last packages arrive, and not by each process; the tests tell its errors.
$(VENV)/.compiled: $(VENV)/.test-installed
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null 2>&1 || true
	@touch $@

$(VENV)/vot-toolkit/.installed: pyproject.toml | $(VENV)/.created
	@echo 'Installing the VOT toolkit into $(VENV)/vot-toolkit ...'
	@$(BIN)/python -m venv $(VENV)/vot-toolkit
	@$(call INSTALL,$(VENV)/vot-toolkit/bin/python) \
	    vot-toolkit==0.7.4 vot-trax==4.0.2 attributee==0.1.9
	@# The current toolkit, which has the same dependencies: beside the one that runs all experiments.
	@$(call INSTALL,$(VENV)/vot-toolkit/bin/python) \
	    --target $(VENV)/vot-toolkit-0.9 --upgrade --no-deps vot-toolkit==0.9.0
	@touch $@

$(VENV)/.docs-installed: pyproject.toml | $(VENV)/.created
	@echo 'Installing into $(VENV), with what builds the documentation (a minute or two) ...'
	@$(PIP) --editable '.[docs]'
	@touch $@

# A name on the path proves little (version managers leave stubs), so each candidate has to run and show what it can.
$(VENV)/.created:
	@for python in "$$PYTHON" python3.11 python3 python3.12 python3.13 python3.14; do \
	    [ -n "$$python" ] || continue; \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	    "$$python" -m venv $(VENV) || exit 1; \
	    $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	        || { echo '$(VENV) holds an older or broken Python: remove it with `make clean`' >&2; exit 1; }; \
	    touch $@; \
	    exit 0; \
	done; \
	echo 'No Python 3.11 or newer with the venv module was found (python3.11, python3, ...).' >&2; \
	echo 'Install one (Debian and Ubuntu: also python3-venv), or name it: make PYTHON=/path/to/python3.11 ...' >&2; \
	exit 1
