"""The most instructions that one step of each main kernel may take: `make gpu-static` fails for one that takes more.

Static counts of SASS, as loop.step reads them, at the default tiles and r = 16; a twentieth more than the worst of the
Tritons that tests/versions tries (on sm_90; the newest alone elsewhere), and than nvcc 13.0. Who makes a kernel
leaner lowers its budget, and who changes its tiles counts anew. The launches over rows of several adapters have the
ranks of eight adapters, up to 32; on sm_90 a twentieth more than with Triton 3.9, or a fifth. (lora_ds_db and lora_da
are gradient::kernel in CUDA.)
"""

# {(kernel, dtypes, config): {target: instructions}}
BUDGETS = {
    ("lora_da", "bf16", "32x64x64-w4-s3"): {"sm_80": 115},
    ("lora_da", "bf16", "32x64x64-w8-s3"): {"sm_100": 95},
    ("lora_da", "bf16", "64x64x64-w4-s3"): {"sm_90": 145},
    ("lora_da", "bf16+fp32", "32x64x64-w4-s3"): {"sm_80": 415},
    ("lora_da", "bf16+fp32", "32x64x64-w8-s3"): {"sm_100": 195},
    ("lora_da", "bf16+fp32", "64x64x64-w4-s3"): {"sm_90": 280},
    ("lora_da, dropout", "bf16", "32x64x64-w4-s3"): {"sm_80": 195},
    ("lora_da, dropout", "bf16", "32x64x64-w8-s3"): {"sm_100": 130},
    ("lora_da, dropout", "bf16", "64x64x64-w4-s3"): {"sm_90": 325},
    ("lora_da, dropout", "bf16+fp32", "32x64x64-w4-s3"): {"sm_80": 440},
    ("lora_da, dropout", "bf16+fp32", "32x64x64-w8-s3"): {"sm_100": 210},
    ("lora_da, dropout", "bf16+fp32", "64x64x64-w4-s3"): {"sm_90": 410},
    ("lora_ds_db", "bf16", "32x256x64-w4-s2"): {"sm_90": 270},
    ("lora_ds_db", "bf16", "32x256x64-w8-s2"): {"sm_80": 230, "sm_100": 275},
    ("lora_ds_db", "bf16+fp32", "16x128x64-w8-s2"): {"sm_80": 930},
    ("lora_ds_db", "bf16+fp32", "32x256x64-w4-s2"): {"sm_90": 720},
    ("lora_ds_db", "bf16+fp32", "32x256x64-w8-s2"): {"sm_100": 545},
    ("lora_dx, dropout", "bf16", "128x128x32-w8-s4"): {"sm_80": 165},
    ("lora_dx, dropout", "bf16", "128x128x64-w8-s4-tma"): {"sm_90": 100, "sm_100": 95},
    ("lora_dx, dropout", "bf16+fp32", "128x128x32-w8-s4"): {"sm_80": 110},
    ("lora_dx, dropout", "bf16+fp32", "128x128x64-w8-s4-tma"): {"sm_90": 100, "sm_100": 95},
    ("lora_linear", "bf16", "128x128x32-w8-s4"): {"sm_80": 140},
    ("lora_linear", "bf16", "128x128x64-w8-s4-tma"): {"sm_90": 95, "sm_100": 90},
    ("lora_linear", "bf16+fp32", "128x128x32-w8-s4"): {"sm_80": 80},
    ("lora_linear", "bf16+fp32", "128x128x64-w8-s4-tma"): {"sm_90": 95, "sm_100": 90},
    ("lora_shrink", "bf16", "32x64x64-w4-s3"): {"sm_80": 70, "sm_100": 60},
    ("lora_shrink", "bf16", "64x64x64-w4-s3"): {"sm_90": 90},
    ("lora_shrink", "bf16+fp32", "32x32x64-w4-s3"): {"sm_80": 305},
    ("lora_shrink", "bf16+fp32", "32x64x64-w4-s3"): {"sm_100": 290},
    ("lora_shrink", "bf16+fp32", "64x64x64-w4-s3"): {"sm_90": 225},
    ("lora_shrink, dropout", "bf16", "32x64x64-w4-s3"): {"sm_80": 350, "sm_100": 355},
    ("lora_shrink, dropout", "bf16", "64x64x64-w4-s3"): {"sm_90": 715},
    ("lora_shrink, dropout", "bf16+fp32", "32x32x64-w4-s3"): {"sm_80": 495},
    ("lora_shrink, dropout", "bf16+fp32", "32x64x64-w4-s3"): {"sm_100": 565},
    ("lora_shrink, dropout", "bf16+fp32", "64x64x64-w4-s3"): {"sm_90": 780},
    ("multi_lora_backward, da, dropout", "bf16", "32x64x64-w4-s3"): {"sm_80": 225, "sm_90": 280},
    ("multi_lora_backward, da, dropout", "bf16", "32x64x64-w8-s3"): {"sm_100": 165},
    ("multi_lora_backward, da, dropout", "bf16+fp32", "32x32x64-w4-s3"): {"sm_80": 625},
    ("multi_lora_backward, da, dropout", "bf16+fp32", "32x64x64-w8-s3"): {"sm_100": 280},
    ("multi_lora_backward, da, dropout", "bf16+fp32", "32x64x64-w4-s3"): {"sm_90": 400},
    ("multi_lora_backward, ds_db", "bf16", "16x128x64-w8-s2"): {"sm_80": 160},
    ("multi_lora_backward, ds_db", "bf16", "32x256x64-w8-s2"): {"sm_90": 250, "sm_100": 240},
    ("multi_lora_backward, ds_db", "bf16+fp32", "16x128x64-w8-s2"): {"sm_80": 940},
    ("multi_lora_backward, ds_db", "bf16+fp32", "32x256x64-w8-s2"): {"sm_90": 1070, "sm_100": 945},
    ("multi_lora_backward, dx, dropout", "bf16", "128x128x32-w8-s4"): {"sm_80": 175},
    ("multi_lora_backward, dx, dropout", "bf16", "128x128x64-w8-s4-tma"): {"sm_90": 105, "sm_100": 95},
    ("multi_lora_backward, dx, dropout", "bf16+fp32", "128x128x32-w8-s4"): {"sm_80": 110},
    ("multi_lora_backward, dx, dropout", "bf16+fp32", "128x128x64-w8-s4-tma"): {"sm_90": 105, "sm_100": 95},
    ("multi_lora_forward, linear", "bf16", "128x128x32-w8-s4"): {"sm_80": 135},
    ("multi_lora_forward, linear", "bf16", "128x128x64-w8-s4-tma"): {"sm_90": 110, "sm_100": 90},
    ("multi_lora_forward, linear", "bf16+fp32", "128x128x32-w8-s4"): {"sm_80": 80},
    ("multi_lora_forward, linear", "bf16+fp32", "128x128x64-w8-s4-tma"): {"sm_90": 110, "sm_100": 90},
    ("multi_lora_forward, shrink, dropout", "bf16", "32x64x64-w4-s3"): {"sm_80": 410, "sm_100": 360},
    ("multi_lora_forward, shrink, dropout", "bf16", "64x64x64-w4-s3"): {"sm_90": 860},
    ("multi_lora_forward, shrink, dropout", "bf16+fp32", "32x32x64-w4-s2"): {"sm_80": 625},
    ("multi_lora_forward, shrink, dropout", "bf16+fp32", "32x64x64-w4-s3"): {"sm_100": 805},
    ("multi_lora_forward, shrink, dropout", "bf16+fp32", "64x64x64-w4-s3"): {"sm_90": 1135},
    ("decode_kernel", "bf16", "__nv_bfloat16, false, 1, false, (Fill)0, SegmentedProductArgs"): {
        "sm_80": 140,
        "sm_90": 155,
        "sm_100": 235,
    },
    ("decode_kernel", "bf16", "__nv_bfloat16, false, 2, false, (Fill)0, SegmentedProductArgs"): {
        "sm_80": 190,
        "sm_90": 205,
        "sm_100": 320,
    },
    ("gradient::kernel", "bf16", "Math<__nv_bfloat16, false>, (Fill)0, 16, false"): {"sm_80": 675, "sm_90": 715},
    ("gradient::kernel", "bf16", "Math<__nv_bfloat16, false>, (Fill)0, 16, true"): {"sm_80": 320, "sm_90": 350},
    ("gradient::kernel", "bf16+fp32", "Parts, (Fill)0, 16, false"): {"sm_80": 895, "sm_90": 945},
    ("gradient::kernel", "bf16+fp32", "Parts, (Fill)0, 16, true"): {"sm_80": 615, "sm_90": 640},
    ("gradient::kernel", "fp32", "Math<float, false>, (Fill)0, 16, false"): {"sm_80": 1985, "sm_90": 2030},
    ("gradient::kernel", "fp32", "Math<float, false>, (Fill)0, 16, true"): {"sm_80": 900, "sm_90": 930},
    ("segmented_shrink_kernel", "bf16", "__nv_bfloat16, __nv_bfloat16"): {"sm_80": 315, "sm_90": 320, "sm_100": 305},
    ("segmented_shrink_kernel", "bf16", "__nv_bfloat16, float"): {"sm_80": 190, "sm_90": 200, "sm_100": 180},
    ("segmented_shrink_kernel", "fp32", "float, float"): {"sm_80": 175, "sm_90": 185, "sm_100": 165},
    ("shrink_kernel", "bf16", "Math<__nv_bfloat16, false>, (Fill)0, 16"): {"sm_80": 555, "sm_90": 580},
    ("shrink_kernel", "bf16+fp32", "Parts, (Fill)0, 16"): {"sm_80": 800, "sm_90": 825},
    ("shrink_kernel", "fp32", "Math<float, false>, (Fill)0, 16"): {"sm_80": 185, "sm_90": 185},
}


def unmatched(rows, targets) -> list[str]:
    """Of the makers and targets that the rows are of: the budgets that no row has, in words."""
    seen = {(row.kernel, row.dtypes, row.config, row.target) for row in rows}
    makers = {row.made_by for row in rows}
    wanted = [
        (*key, target) for key, most in BUDGETS.items() for target in most
        if target in targets and made_by(key[0]) in makers
    ]  # fmt: skip
    return [
        f"{kernel} ({made_by(kernel)}, {target}, {config}, {dtypes}): a budget, and no such kernel was compiled; "
        "count the step of the one in its place and enter it in bench/static/budget.py"
        for kernel, dtypes, config, target in wanted
        if (kernel, dtypes, config, target) not in seen
    ]


def made_by(kernel: str) -> str:
    """Whose it is: a C++ function is called a kernel there, a launch of Triton by its op."""
    return "cuda" if kernel.endswith("kernel") else "triton"
