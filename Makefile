# Each target does all its set-up on a fresh machine: a virtual environment, the package, the run.
# Of the Pythons that are supported and here, on PATH or in pyenv: the newest, and the oldest.
python = $(shell for v in $(1); do for p in python$$v "$$(pyenv prefix $$v 2>/dev/null)/bin/python"; \
	do "$$p" -c "" 2>/dev/null && echo "$$p" && exit; done; done)
PYTHON ?= $(call python,3.13 3.12 3.11)
OLDEST ?= $(call python,3.11 3.12 3.13)
VENV ?= .venv
RUN := $(VENV)/bin/python
# Modules are compiled when they are first imported, and most never are: half of the time.
PIP := -m pip install --quiet --no-compile
INSTALL := $(PIP) --editable
# Where it is set, as containers do, every process of the tests compiles jax and flax anew.
export PYTHONDONTWRITEBYTECODE :=
EXAMPLES := digits unet image_to_image autoencoder discogan sdcnet timeseries ecg seq2seq recommender
# Of the files that have one: each of the others would be imported only to be left out.
SMOKE := -m smoke $(shell grep -rl --include='test_*.py' mark.smoke tests)
COMPILED := $(addprefix tests/compilers/,test_bars.py test_every_kernel.py test_known_programs.py)
# The vendors' compilers, 1.3 GB, where they run and are read.
COMPILERS = $(shell $(PYTHON) -c "import platform, sys; print('$(VENV)/compilers' * (sys.version_info \
	>= (3, 12) and platform.system() + platform.machine() == 'Linuxx86_64'))")

.PHONY: check test lint smoke-oldest compilers bench bench-quick bench-full docs examples peers clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) $(INSTALL) '.[dev]'
	touch $@

# The package itself after the other environment's: both write its metadata to this folder.
$(VENV)-oldest/installed: pyproject.toml $(VENV)-oldest/lowest | $(VENV)/installed
	$(VENV)-oldest/bin/python $(INSTALL) '.[dev]' --constraint .ci/oldest.txt
	touch $@

$(VENV)-oldest/lowest: .ci/oldest.txt
	$(OLDEST) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python $(PIP) --requirement .ci/oldest.txt
	touch $@

# In a run that installs more, after what writes the package's metadata too.
$(VENV)/compilers: pyproject.toml | $(VENV)/installed $(METADATA)
	$(RUN) $(INSTALL) '.[compilers]'
	touch $@

# Before a commit: lint, types and the smoke tests.
check: lint
	$(RUN) -m pytest --numprocesses=2 $(SMOKE)

# Lint, types and all tests; the smoke tests again on the oldest Python, jax, flax, optax and orbax.
# Every kernel goes through the vendors' compilers on Linux on x86-64 only. The environments are
# installed side by side, and lint and the compilers beside the end of that: two cores have
# something to do.
test:
	$(MAKE) --jobs=2 --output-sync=target lint smoke-oldest $(COMPILERS) METADATA=$(VENV)-oldest/installed
	$(RUN) -m pytest --numprocesses=2 --dist=worksteal $(if $(COMPILERS),,$(addprefix --ignore=,$(COMPILED)))

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# With all of XLA's optimizations. Warnings are those of old packages about each other.
smoke-oldest: $(VENV)-oldest/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(VENV)-oldest/bin/python -m pytest --numprocesses=2 $(SMOKE) -W default

# Of all tests those that ask the vendors' compilers for TPU and GPU.
compilers: $(VENV)/compilers
	$(RUN) -m pytest --numprocesses=2 --dist=worksteal $(COMPILED)

# All comparisons: 16 to 22 minutes on 2 cores that do nothing else, longer where rounds are noisy,
# and 34 beside all peers.
# bench-quick takes 3: fewer shapes, rounds and steps. bench-full is the whole suite: more sweeps,
# longer training, ten million classes.
bench-quick: SUITE := --quick
bench-full: SUITE := --full
bench bench-quick bench-full: $(VENV)/installed
	for name in softmax sequences pointwise; do \
		$(RUN) -m benchmarks $$name $(SUITE) --output results || exit 1; \
	done

# The documentation site, in results/docs; a warning is an error.
docs: $(VENV)/installed
	$(RUN) $(INSTALL) '.[docs]'
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet docs results/docs

# Every example on real data, one after the other: 40 minutes on 2 cores. Pictures in results/.
examples: $(VENV)/installed
	$(RUN) $(INSTALL) '.[examples]'
	for name in $(EXAMPLES); do $(RUN) -m examples.$$name || exit 1; done

# Keras, TensorFlow and PyTorch, to be compared with where they are installed.
peers: $(VENV)/installed
	$(RUN) $(INSTALL) '.[peers]'

clean:
	rm -rf $(VENV) $(VENV)-oldest results
