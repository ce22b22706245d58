# Everything is installed into its own virtual environment; nothing outside it is touched.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow bench docs fuzz lint clean licences audit hashes locked test-oldest test-newest

demo: $(READY)  ## the main job on the embedded starter, with a report
	$(BIN)/dap demo $(ARGS)

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(READY)  ## the tests that take minutes: a Ray cluster that loses a node, torchrun, killed shells, benchmarks
	$(BIN)/python -m pytest -m slow -s $(ARGS)

bench: $(READY)  ## one table of ratios: start-up, bank, sampling, evaluation, report; `make bench ARGS=--quick` for 2 minutes
	$(BIN)/python benchmarks/bench.py $(ARGS)

docs: $(READY)  ## the documentation as a site in build/site, without network; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

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
$(READY): pyproject.toml starters/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { echo "python3 lacks venv; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[dev]" --editable ./starters
	$(BIN)/python -m compileall -q src  # an environment that forbids to write bytecode would compile at every start
	touch $@

licences: $(READY)  ## docs/licences.md: the licences of packages, of the embedded weights and of the data
	$(BIN)/python -P benchmarks/licences.py

audit: $(READY)  ## known holes in the pinned versions, by pip-audit; it needs the network
	$(BIN)/uv tool run pip-audit --requirement $(or $(OF),constraints.txt) --no-deps --disable-pip --strict --progress-spinner off \
		|| { echo "make audit: pip-audit found a hole, or it could not ask about every package, for which it needs the network; see above"; exit 1; }

# The hashes of every file of every pinned version, for all systems and all versions of Python that we support.
hashes: $(READY)  ## requirements-hashed.txt, after constraints.txt or pyproject.toml has changed
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --constraint constraints.txt --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --output-file requirements-hashed.txt

locked:  ## an environment of its own, $(VENV)-locked, from files whose hashes are those of requirements-hashed.txt alone
	$(MAKE) VENV=$(VENV)-locked INSTALL="--require-hashes --requirement requirements-hashed.txt" $(VENV)-locked/.other

# Versions other than the pinned ones, each in an environment of its own. ARGS picks tests: make test-oldest ARGS="tests/data"
test-oldest:  ## all tests with the oldest versions that pyproject.toml allows for what it names
	$(MAKE) VENV=$(VENV)-oldest INSTALL="--resolution lowest-direct --only-binary :all: --requirement $(VENV)-oldest.txt" \
		$(VENV)-oldest/.other
	$(VENV)-oldest/bin/python -m pytest -n 2 $(ARGS)

test-newest:  ## all tests with the newest versions that pyproject.toml allows
	$(MAKE) VENV=$(VENV)-newest INSTALL="--resolution highest --only-binary :all: --upgrade --requirement $(VENV)-newest.txt" \
		$(VENV)-newest/.other
	$(VENV)-newest/bin/python -m pytest -n 2 $(ARGS)

.PRECIOUS: $(VENV).txt
$(VENV).txt: pyproject.toml  ## what pyproject.toml asks for, without the project itself, which is installed as it lies here
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $@

$(VENV)/.other: $(VENV).txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(INSTALL)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . --editable ./starters
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
