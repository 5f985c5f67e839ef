# Each target sets up what it needs: a virtual environment in .venv, filled by pip.
PYTHON ?= python3
PROFILE ?= mnist5k
BIN := .venv/bin
# What a kernel prints, progress bars included, goes straight to the terminal.
PAPERMILL := $(BIN)/papermill --no-progress-bar --no-log-output --stdout-file - --stderr-file - --log-level WARNING
# glibc asks the kernel for every large tensor anew, a third of the time of a net at 224 pixels; so it keeps up to 1 GiB.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

# Executes a notebook with the params of PROFILE, and keeps the executed copy beside its records.
define run
@mkdir -p runs/$(PROFILE)/$(1)
$(PAPERMILL) notebooks/$(1).ipynb runs/$(PROFILE)/$(1)/$(1).ipynb -f params/$(PROFILE)/$(1).yaml
@echo; cat figures/$(PROFILE)/$(1).md
endef

.DEFAULT_GOAL := help
.PHONY: lock lowest torture help setup rank reproduce test lint bench lab docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## make the virtual environment and install the package into it

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv: a few minutes, most of them for torch, which is the largest of the downloads"
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	@# Quantus asks for opencv-python, whose files would replace those of the headless one and need a display's libraries.
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps "quantus>=0.6,<0.7" cachetools
	@mkdir -p .venv/etc/ipython && echo '{"IPKernelApp": {"log_level": 40}}' > .venv/etc/ipython/ipython_kernel_config.json
	@touch $@

rank: setup ## rank attribution methods on embedded data: the main job
	$(call run,rank_methods)

reproduce: setup ## run every notebook of PROFILE (mnist5k); what is done is reused
	$(BIN)/python -m idsds reproduce $(PROFILE)

test: setup lint ## check the style, run the tests and every notebook
	$(BIN)/python -m pytest -n 2 --dist worksteal tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks

lint: setup ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup ## measure speed and memory, as ratios in one run
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

torture: setup ## some 500 trials of kills, writers, full disks, flipped bits, lost workers: minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture

# Of what the extras bring, what the chosen tests need; a lower bound that is not true fails here.
lowest: setup ## install the lowest versions that pyproject.toml allows into build/lowest, and test a part
	$(BIN)/python -m pip install -q uv
	$(PYTHON) -m venv build/lowest
	$(BIN)/python -m uv pip compile pyproject.toml --extra cluster --extra gradcam --extra saliency --extra zennit --extra quantus \
		--resolution lowest-direct --no-header --no-annotate -q -o build/lowest/requirements.txt
	$(BIN)/python -m uv pip install -q --python build/lowest/bin/python -r build/lowest/requirements.txt "pytest>=8.3" "scikit-image>=0.25" \
		"krippendorff>=0.8"
	$(BIN)/python -m uv pip install -q --python build/lowest/bin/python --no-deps --editable .
	PYTHONPATH=. build/lowest/bin/python -m pytest tests/test_imports.py tests/common/test_files.py tests/common/test_settings.py \
		tests/models/test_weights.py tests/statistics tests/protocols/test_single_deletion.py tests/protocols/test_base.py \
		tests/evaluation/test_cache.py tests/evaluation/test_commit.py tests/evaluation/test_records.py tests/methods/test_gradient.py \
		tests/methods/test_cam.py tests/methods/libraries tests/plots/test_rank_methods.py

lab: setup ## open the notebooks in JupyterLab
	@$(BIN)/python -m idsds index
	$(BIN)/jupyter lab --notebook-dir=. notebooks/index.ipynb

docs: setup ## build the documentation, offline, into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/docs/index.html

clean: ## remove the environment, the cache and the runs
	rm -rf .venv cache runs

lock: setup ## write requirements.lock: what is installed here, with hashes
	$(BIN)/python -m pip install -q uv
	$(BIN)/python -m pip freeze --exclude-editable | grep -v @ > .venv/installed.txt
	$(BIN)/python -m uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-annotate -q \
		-c .venv/installed.txt -o requirements.lock
