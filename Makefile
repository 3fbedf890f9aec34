# Everything happens in .venv (and for the two other stacks in .venv-keras2 and
# .venv-addons), made on the first call and reused.
PYTHON ?= python3
# TensorFlow 2.15, and so Addons, needs Python 3.10 or 3.11.
PYTHON_ADDONS ?= $(PYTHON)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO ?= runs/demo
# Processes that test at once; each takes up to 4 GB.
JOBS ?= 2
PYTEST := -m pytest -n $(JOBS) --dist loadfile

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow test-keras2 test-addons lint clean

demo: $(INSTALLED)
	$(RUN) -m tools.demo --workdir=$(DEMO)

test: $(INSTALLED) lint
	$(RUN) $(PYTEST) -m "not slow"

# Minutes each: workers and runs that are killed, the demo.
test-slow: $(INSTALLED)
	$(RUN) $(PYTEST) -m slow

# What has to work on Keras 2, and on TensorFlow 2.15 with Addons.
test-keras2: $(VENV)-keras2/.installed
	TF_USE_LEGACY_KERAS=1 $(VENV)-keras2/bin/python $(PYTEST) -m core

test-addons: $(VENV)-addons/.installed
	$(VENV)-addons/bin/python $(PYTEST) -m core

lint: $(INSTALLED)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

# A stamp, so that an interrupted install is done again and a changed
# setup.cfg brings the environment up to date.
$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[test,torch,consumers]"
	touch $@

$(VENV)-keras2/.installed $(VENV)-addons/.installed: \
		$(VENV)-%/.installed: setup.cfg pyproject.toml
	$(if $(filter addons,$*),$(PYTHON_ADDONS),$(PYTHON)) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --editable ".[test,$*]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-keras2 $(VENV)-addons runs *.egg-info
