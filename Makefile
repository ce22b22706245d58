# Everything is installed into its own virtual environment; nothing outside it is touched.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow fuzz lint clean

demo: $(READY)  ## the main job on the embedded starter, with a report
	$(BIN)/dap demo $(ARGS)

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(READY)  ## the tests that take minutes: a Ray cluster that loses a node, torchrun, shells that are killed
	$(BIN)/python -m pytest -m slow -s $(ARGS)

MINUTES ?= 10
fuzz: $(READY) $(VENV)/.fuzz  ## damaged files for every reader; `make fuzz MINUTES=1 ARGS="--only manifest"`
	$(BIN)/python -m fuzz --minutes $(MINUTES) $(ARGS)

lint: $(READY)  ## ruff and pyright (as basedpyright, which brings its own Node)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Atheris has wheels for some machines alone. Where there is none, the other drivers of `make fuzz` have all the time.
$(VENV)/.fuzz: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --only-binary atheris atheris \
		|| echo "atheris does not install on this machine; make fuzz goes on without it"
	touch $@

# uv installs torch, torchvision and diffusers in minutes where pip takes many.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { echo "python3 lacks venv; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m compileall -q src  # an environment that forbids to write bytecode would compile at every start
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
