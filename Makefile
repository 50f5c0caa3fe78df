# make demo    generate a clip dense and with SVG-EAR, into demo_output/
# make test    run the tests; those in tests/comfyui/ need a ComfyUI checkout (COMFYUI_PATH or ~/comfy/ComfyUI)
# make clean   remove what the two made
#
# Both install what they need into .venv. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PYTEST_ARGS ?= --durations=10

.PHONY: demo test clean

# Threads that wait give up their core after a moment: spinning costs minutes on a busy machine, sleeping at once a third.
demo: $(VENV)/.demo-installed
	GOMP_SPINCOUNT=10000 $(RUN) -m benchmarks.demo

# The tensors of the tests are small: on a busy machine a second thread costs many times what it saves.
test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: $(VENV)/.test-installed
	$(RUN) -m tests.comfyui.harness.install $(VENV)/.comfyui-installed
	$(RUN) -m pytest $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.%-installed: requirements-%.txt requirements.txt requirements-demo.txt $(VENV)/pyvenv.cfg
	@echo "installing $< into $(VENV) (some minutes the first time)"
	$(PIP) -r $<
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
