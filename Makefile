# Every target sets up what it needs: a virtual environment in .venv with pinned packages.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
BASE ?= HEAD
TABLE ?= digits_own
PEERS := flwr==1.42.0 nvflare==2.9.0

.DEFAULT_GOAL := help
.PHONY: help setup run study test test-slow test-slurm test-docker images check format protos golden peers clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/ready  ## make .venv with the pinned packages

.venv/ready: pyproject.toml constraints.txt hatch_build.py steelyard/scoring/paths/winograd.c
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: setup  ## the quickstart: ten client processes, one cheats
	$(BIN)/steelyard run experiments/quickstart.toml

study: setup  ## one table of the study, e.g. make study TABLE=digits_own
	$(BIN)/steelyard sweep experiments/paper/$(TABLE).toml

test: setup  ## the test suite, without the slow ones
	$(BIN)/python -m pytest -m 'not slow and not slurm and not docker'

test-slow: setup  ## the slow tests: whole experiments, several seeds
	$(BIN)/python -m pytest -m 'slow and not slurm and not docker'

test-docker: setup  ## the tests in containers: walls, chaos, the quickstart's bits
	$(BIN)/python -m pytest -m docker -rs

images: setup  ## build the images of server, client and link
	$(BIN)/python -m deploy.containers.images

test-slurm: setup  ## two virtual nodes of a real Slurm: Debian's slurmctld, slurmd, slurm-client, munge
	$(BIN)/python -m pytest -m slurm

check: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## bring the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup  ## regenerate the code from protos/federation.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/federation.proto

golden: setup  ## compare this tree's numbers with BASE's (a git revision), bit for bit
	$(BIN)/python -m scripts.golden --base $(BASE)

peers: .venv-peers/ready  ## the platforms that `steelyard bench transport --peers .venv-peers` compares with

.venv-peers/ready: Makefile
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(PEERS)
	touch $@

clean:  ## remove .venv and caches; runs stay
	rm -rf .venv .venv-peers .mypy_cache .ruff_cache .hypothesis *.egg-info steelyard/scoring/paths/*.so
