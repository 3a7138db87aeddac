# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests. Each sets up its own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY_STAMP := $(VENV)/.installed-ray
LAION := .venv-laion
LAION_STAMP := $(LAION)/.installed

.PHONY: demo test test-random test-ray test-laion lint clean

demo: $(STAMP)
	$(BIN)/bundle-mllm demo --output-dir out/demo

# Everything: `pytest` alone leaves out what is marked slow (runs, servers, other processes).
test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "slow or not slow"

# Random input: about 100,000 cases of importers, tables, texts, settings, questions and prompts; each test says how many it accepted.
test-random: $(STAMP)
	RANDOM_INPUTS=7700 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 tests/random_input

# Ray starts processes of its own, which takes minutes on a small machine (more where others are busy: it makes them nice).
test-ray: $(RAY_STAMP)
	RAY_worker_niceness=0 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "slow or not slow" tests/encoders/test_resume.py tests/completion/test_bulk.py -k ray

# laion-clap demands an older numpy than ours, though it runs with ours: installed apart, without what it names.
test-laion: $(LAION_STAMP)
	HF_HUB_OFFLINE=1 $(LAION)/bin/python -m pytest -q tests/encoders/test_acoustic.py -k laion_clap

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/pyright

$(STAMP): pyproject.toml constraints.txt .ci/torchvision_on_cpu.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python .ci/torchvision_on_cpu.py
	touch $(STAMP)

$(RAY_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[ray]"
	touch $(RAY_STAMP)

$(LAION_STAMP): pyproject.toml constraints.txt .ci/torchvision_on_cpu.py
	$(PYTHON) -m venv $(LAION)
	$(LAION)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(LAION)/bin/pip install --quiet --no-deps laion-clap==1.1.7
	$(LAION)/bin/pip install --quiet --constraint constraints.txt torchlibrosa librosa braceexpand webdataset wget h5py progressbar
	$(LAION)/bin/python .ci/torchvision_on_cpu.py
	touch $(LAION_STAMP)

clean:
	rm -rf $(VENV) $(LAION) out
