# Each target does all its set-up on a fresh machine: a virtual environment, the package, the run.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
EXAMPLES := digits unet image_to_image autoencoder discogan sdcnet timeseries ecg seq2seq

.PHONY: test bench bench-quick bench-full examples peers clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

test: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest --numprocesses=2 --dist=worksteal

# All comparisons: 16 minutes at most on 2 cores. bench-quick takes 3: fewer shapes, rounds and
# steps. bench-full is the whole suite: more sweeps, longer training, ten million classes.
bench-quick: SUITE := --quick
bench-full: SUITE := --full
bench bench-quick bench-full: $(VENV)/installed
	for name in softmax sequences pointwise; do \
		$(RUN) -m benchmarks $$name $(SUITE) --output results || exit 1; \
	done

# Every example on real data, one after the other: 40 minutes on 2 cores. Pictures in results/.
examples: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[examples]'
	for name in $(EXAMPLES); do $(RUN) -m examples.$$name || exit 1; done

# Keras, TensorFlow and PyTorch, to be compared with where they are installed.
peers: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[peers]'

clean:
	rm -rf $(VENV) results
