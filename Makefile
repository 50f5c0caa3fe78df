# make demo    generate a clip dense and with SVG-EAR, into demo_output/
# make test    run the tests; those in tests/comfyui/ need a ComfyUI checkout (COMFYUI_PATH or ~/comfy/ComfyUI)
# make clean   remove what the two made
#
# Both install what they need into .venv. Another interpreter: make test PYTHON=python3.12
# Arguments: make demo DEMO_ARGS="--seconds 600 --output FOLDER", make test PYTEST_ARGS="tests/nodes -k strict"

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO_ARGS ?=
# As many at a time as tests/conftest.py says.
PYTEST_ARGS ?= --numprocesses auto --durations 10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# Threads that wait give up their core after a moment: spinning costs minutes on a busy machine, sleeping at once a third.
demo: $(VENV)/.demo-installed
	@GOMP_SPINCOUNT=10000 $(RUN) -m benchmarks.demo $(DEMO_ARGS)

# The tensors of the tests are small: on a busy machine a second thread costs many times what it saves.
test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: $(VENV)/.test-installed
	$(RUN) -m tests.comfyui.harness.install $(VENV)/.comfyui-installed
	$(RUN) -m pytest $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build demo_output .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.%-installed: requirements-%.txt requirements.txt requirements-demo.txt $(VENV)/pyvenv.cfg
	@echo "installing $< into $(VENV) (some minutes the first time)"
	@$(RUN) scripts/install.py -r $<
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
