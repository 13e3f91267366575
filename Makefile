# Every target sets up .venv from the lock when it is missing or stale.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: headline test lint bench clean

headline: $(STAMP)  ## The main job: d=50, p_cot=0.25, next-token prediction then GRPO
	$(RUN) -m experiments.main --config=experiments/headline.py --workdir=runs/headline

test: lint  ## Lint, types, import order, tests
	$(RUN) -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" lint-imports

bench: $(STAMP)  ## Speed, as ratios within one run
	$(RUN) -m benchmarks.run

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --editable .
	touch $@

lock:  ## Renew requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header \
		--extra dev pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV)
