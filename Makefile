# Front of workspace.py, which reads workspace.toml. `make` lists the targets.
# PYTHON names the interpreter (3.11 or newer) from which environments are made.
PYTHON ?= python3
WORKSPACE := $(PYTHON) workspace.py

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help envs demo test lint type doctor FORCE

help envs demo test lint type doctor:
	@$(WORKSPACE) $@

env-%: FORCE
	@$(WORKSPACE) env $*

clean-env-%: FORCE
	@$(WORKSPACE) clean-env $*

demo-%: FORCE
	@$(WORKSPACE) demo $*

test-%: FORCE
	@$(WORKSPACE) test $*

bench-%: FORCE
	@$(WORKSPACE) bench $*

lock-%: FORCE
	@$(WORKSPACE) lock $*
