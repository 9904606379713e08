# Duodao: everything here sets itself up in $(VENV) first and needs only make and a Python >= 3.11 with venv.
#   make demo    run the main job on real input: this machine's own standard library
#   make test    run the tests            make test ARGS="tests/unit -k window"
#   make test-pure  the tests of the locks once more, without the part in C (a full make test has them in it)
#   make soak    the long form of the fault tests
#   make bench   our figures beside those of the peers (own environment)
#                                         make bench ONLY=process_tiny ROUNDS=3
#   make lint    ruff, mypy, pyright
#   make format  let ruff put the layout right
#   make clean   remove what the above made
# PYTHON chooses the interpreter: make test PYTHON=python3.13

SHELL := /bin/sh
VENV ?= .venv
BENCH_VENV ?= .venv-bench
SCRAPY_VENV ?= .venv-scrapy
# python3 where it is new enough, else the newest one that .ci/pythons finds.
PYTHON ?= $(shell python3 -I -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v python3 || .ci/pythons | tail -n 1)
VERSION := $(shell $(PYTHON) -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
# Most tests wait for something most of the time.
JOBS ?= 3
BIN := $(VENV)/bin
BENCH_BIN := $(BENCH_VENV)/bin
# A stamp carries the Python's version: another PYTHON makes the environment anew.
MADE := $(VENV)/.made-$(VERSION)
DEV := $(VENV)/.dev-$(VERSION)
BENCH := $(BENCH_VENV)/.made-$(VERSION)
SCRAPY := $(SCRAPY_VENV)/.made-$(VERSION)
# --group came with pip 25.1, later than the pip that Python 3.11 to 3.13 bring along.
PIP := -m pip --disable-pip-version-check -qq
# What pip installs from: a change of the part in C is compiled anew.
PACKAGE := pyproject.toml setup.py $(wildcard src/duodao/*/*.c)
# The tests of what stands on the part in C; without it, all of it is Python.
PURE := $(wildcard tests/unit/sync tests/contract/test_cpython_locks.py tests/faults/test_deadlock.py)

.PHONY: help demo test test-pure soak bench lint lint-ruff lint-mypy lint-pyright format clean check-python
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//;1,/^PYTHON chooses/p' Makefile

check-python:
	@test -n "$(VERSION)" && $(PYTHON) -I -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'make: no usable Python >= 3.11 (PYTHON="$(PYTHON)"); name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3'; \
		echo 'make: on Debian and Ubuntu, venv is a package of its own: apt-get install python3-venv'; exit 1; }

$(MADE): $(PACKAGE) | check-python
	@echo "making $(VENV) with Python $(VERSION)"
	@test -e $(MADE) || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python $(PIP) install --upgrade 'pip>=25.1'
	@$(BIN)/python $(PIP) install --editable '.[all]'
	@touch $@

$(DEV): $(MADE) pyproject.toml
	@echo "installing what the tests and checks need"
	@$(BIN)/python $(PIP) install --group test --group lint
	@touch $@

$(BENCH): $(PACKAGE) benchmarks/peers.txt | check-python
	@echo "making $(BENCH_VENV) with Python $(VERSION) and the peers"
	@test -e $(BENCH) || { rm -rf $(BENCH_VENV); $(PYTHON) -m venv $(BENCH_VENV); }
	@$(BENCH_BIN)/python $(PIP) install --editable '.[all]'
	@$(BENCH_BIN)/python $(PIP) install --requirement benchmarks/peers.txt
	@touch $@

$(SCRAPY): benchmarks/peers-scrapy.txt | check-python
	@echo "making $(SCRAPY_VENV) with Python $(VERSION) and Scrapy"
	@rm -rf $(SCRAPY_VENV)
	@$(PYTHON) -m venv $(SCRAPY_VENV)
	@$(SCRAPY_VENV)/bin/python $(PIP) install --requirement benchmarks/peers-scrapy.txt
	@touch $@

demo: $(MADE)
	@$(BIN)/python examples/demo.py

# What fails beside others, or on a busy machine, is run once more by itself: a fact must hold there.
AGAIN := --last-failed --last-failed-no-failures none

test: $(DEV)
	@$(BIN)/python -m pytest -m 'not soak and not alone' -n $(JOBS) --dist loadfile $(ARGS) || { \
		echo '== once more, one by one: what failed side by side'; \
		$(BIN)/python -m pytest -m 'not soak and not alone' $(AGAIN) $(ARGS); }
	@$(BIN)/python -m pytest -m 'alone and not soak' $(ARGS) || { \
		echo '== once more: what failed'; \
		$(BIN)/python -m pytest -m 'alone and not soak' $(AGAIN) $(ARGS); }
	@$(if $(ARGS),:,$(MAKE) -s test-pure)

test-pure: $(DEV)
	@DUODAO_SPEED=0 $(BIN)/python -m pytest -m 'not soak' -n $(JOBS) --dist loadfile $(PURE) || { \
		echo '== once more, one by one: what failed side by side'; \
		DUODAO_SPEED=0 $(BIN)/python -m pytest -m 'not soak' $(AGAIN) $(PURE); }

soak: $(DEV)
	@$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(BENCH) $(SCRAPY)
	@SCRAPY=$(SCRAPY_VENV)/bin/python $(BENCH_BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

# Three targets, so that `make -k lint` shows what each has to say.
lint: lint-ruff lint-mypy lint-pyright

lint-ruff: $(DEV)
	@$(BIN)/ruff check --output-format concise .

lint-mypy: $(DEV)
	@$(BIN)/mypy

lint-pyright: $(DEV)
	@$(BIN)/pyright

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(SCRAPY_VENV) .venv-[0-9]* build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf src/duodao.egg-info src/duodao/sync/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
