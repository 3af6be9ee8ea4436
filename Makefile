# All dependencies are installed in .venv, except those of `system` and `java`. Delete .venv to start over.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install demo docs test tests lint bench chaos soak mutants system java

help:
	@echo "make install   make .venv with everything"
	@echo "make demo      train on the shipped purchases, serve, ask; ONCE=1 ends after the answers"
	@echo "make docs      write docs/reference.md: every setting, command and route"
	@echo "make test      lint, types and tests, in JOBS processes (two a core): about three minutes on two cores"
	@echo "make lint      lint and types only"
	@echo "make bench     how fast it is, beside alternatives (minutes; nothing else should run)"
	@echo "make chaos     faults, overload, hostile input and long random walks; writes tests/chaos/REPORT.md (40 minutes)"
	@echo "make soak      swaps, restarts of Redis, clients that hang up for half an hour; writes tests/chaos/SOAK.md"
	@echo "make mutants   change the code in N places a module (20), and list the changes that no test notices (hours)"
	@echo "make system    install the programs that tests start: redis-server, haproxy, curl, wget, faketime (root on Debian)"
	@echo "make java      install a JDK, whose HTTP client make chaos tries (root on Debian)"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "make: $(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	@$(BIN)/python examples/demo.py

docs: install
	$(BIN)/python docs/reference.py

# Lint and types run at the same time as the tests.
test: system install
	@$(MAKE) --no-print-directory --jobs=2 lint tests

JOBS ?= $(shell echo $$((2 * $$(nproc))))

tests:
	$(BIN)/pytest --numprocesses=$(JOBS) --dist=loadfile

bench: install
	$(BIN)/pytest tests/benchmarks
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit 1; done

chaos: install system java
	DR_CHAOS=tests/chaos/REPORT.md $(BIN)/pytest -v tests/chaos

soak: install system
	DR_CHAOS=tests/chaos/SOAK.md DR_SOAK_SECONDS=1800 $(BIN)/pytest -v tests/chaos/test_soak.py

N ?= 20

mutants: install system
	@$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[mutants]'
	$(BIN)/python -m tests.mutants -n $(N)

# Without these programs, the tests use the Valkey of the test dependencies instead of Redis, and skip what they cannot run.
system:
	@for program in redis-server redis-cli haproxy curl wget faketime; do command -v $$program >/dev/null || missing=yes; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
			redis-server haproxy curl wget faketime >/dev/null; \
	else echo "make: install redis-server, haproxy, curl, wget and faketime to run every test" >&2; fi

# A separate target, because `make test` needs no JDK.
java:
	@if command -v javac >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
			default-jdk-headless >/dev/null; \
	else echo "make: install a JDK (Debian: default-jdk-headless) to run every test of make chaos" >&2; fi

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
