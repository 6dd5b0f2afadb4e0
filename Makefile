# What is done daily. `make demo` and `make test` start from a fresh clone with Python, a C++ compiler and make alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(CURDIR)/.ci/constraints.txt
# The GPU that is here, or one architecture just to prove that the CUDA source compiles; releases build all-major.
ARCHS ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,90)
NATIVE := CMakeLists.txt pyproject.toml $(wildcard csrc/*) tests/cuda_on_cpu.h tests/cuda_on_cpu.cpp \
    $(shell grep -l '"cuda_sha256": "' benchmarks/results/*.json 2>/dev/null)
# `PYTHON=python3 make gpu` uses a Python that has torch for CUDA, nvcc and the build tools already; nothing is fetched.
# Where the copy has no .git folder, LESIONAUG_COMMIT=<commit> says what it is of.
PYTHON_GPU ?= $(if $(filter environment command,$(word 1,$(origin PYTHON))),$(PYTHON),$(BIN)/python)

.PHONY: demo test browser test-full lint format bench fuzz gpu gpu-test gpu-bench .gpu-installed clean

$(VENV)/.installed: $(NATIVE) $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	LESIONAUG_ARCHS="$(ARCHS)" LESIONAUG_EMULATION=ON PIP_CONSTRAINT=$(CONSTRAINTS) \
	    $(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test]"
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install -q --disable-pip-version-check \
	    clang-format mypy ruff
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lesionaug demo lesionaug-demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m "not full and not gpu" -n 2 --dist loadfile

# The reader study and the report are tried in a real browser where there is one; this is how to get one (Debian, root).
browser:
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium)

test-full: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m "not gpu" -n 2 --dist loadfile

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/* tests/cuda_on_cpu.*

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/* tests/cuda_on_cpu.*

# What we are measured against; OpenCV's 4.x line beside the 5.x that is installed.
$(VENV)/.bench: $(VENV)/.installed
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install -q --disable-pip-version-check \
	    kornia opencv-python-headless scikit-image
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/opencv-4 \
	    "opencv-python-headless>=4.14,<5"
	touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m pytest -q benchmarks -o python_files="bench_*.py" --benchmark-columns=median,min,max -s
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.table README.md docs/gans.md

# Whatever reads files of others, for MINUTES each; TARGET=NAME for one of them (tests/fuzz/README.md).
MINUTES ?= 20
TARGET ?= all
$(VENV)/.fuzz: $(VENV)/.installed
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install -q --disable-pip-version-check atheris
	touch $@

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz $(TARGET) --minutes $(MINUTES)

# Every file with a test that a GPU runs; they need torch, NumPy and what tests are made with, and no more.
GPU_TESTS := $(addprefix tests/test_,batches.py cuda.py cuda_tiled.py gradients.py plan.py resample.py \
    training_gpu.py)

# Fails without a GPU. Writes benchmarks/results/<device>.json. The two halves can be run apart.
gpu: gpu-test gpu-bench

.gpu-installed: $(if $(filter $(BIN)/python,$(PYTHON_GPU)),$(VENV)/.installed)
	$(if $(filter-out $(BIN)/python,$(PYTHON_GPU)),LESIONAUG_ARCHS=native LESIONAUG_CUDA=ON LESIONAUG_EMULATION=ON \
	    $(PYTHON_GPU) -m pip install -q --no-build-isolation --no-deps -e .)

gpu-test: .gpu-installed
	LESIONAUG_REQUIRE_CUDA=1 $(PYTHON_GPU) -m pytest -q -rs -m gpu $(GPU_TESTS)
	for tool in memcheck racecheck initcheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 LESIONAUG_REQUIRE_CUDA=1 \
	    compute-sanitizer --error-exitcode 1 --tool $$tool $(PYTHON_GPU) -m pytest -q -m gpu \
	        tests/test_resample.py tests/test_cuda_tiled.py tests/test_batches.py \
	        -k "small or split or bad or far or square or flips or rows" \
	        -p no:cacheprovider || exit 1; \
	done

gpu-bench: .gpu-installed
	$(PYTHON_GPU) -m pytest -q benchmarks -o python_files="bench_*.py" --device cuda -s
	$(PYTHON_GPU) -m benchmarks.scaling --device cuda

clean:
	rm -rf $(VENV) build lesionaug-demo
