# Everything that is done daily. `make demo` and `make test` start from a fresh clone with Python, a C++ compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(CURDIR)/.ci/constraints.txt
# A GPU that is here, or one architecture just to prove that the CUDA source compiles; releases build all-major.
ARCHS ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,90)
NATIVE := CMakeLists.txt pyproject.toml $(wildcard csrc/*) tests/cuda_on_cpu.h tests/cuda_on_cpu.cpp

.PHONY: demo test test-full lint format bench gpu clean

$(VENV)/.installed: $(NATIVE) $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install -q --disable-pip-version-check \
	    -C cmake.define.LESIONAUG_ARCHS="$(ARCHS)" -C cmake.define.LESIONAUG_EMULATION=ON -e ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lesionaug demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m "not full and not gpu" -n 2 --durations=10

clean:
	rm -rf $(VENV) build
