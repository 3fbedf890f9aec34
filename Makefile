# Everything happens in .venv, which is made on the first call and reused.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO ?= runs/demo

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-fast lint clean

demo: $(INSTALLED)
	$(RUN) -m tools.demo --workdir=$(DEMO)

test: $(INSTALLED) lint
	$(RUN) -m pytest

test-fast: $(INSTALLED)
	$(RUN) -m pytest -m "not slow"

lint: $(INSTALLED)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

# A stamp, so that an interrupted install is done again and a changed
# setup.cfg brings the environment up to date.
$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) runs *.egg-info
