"""Mutations of the autograd functions, of merging, and of the choice of a kernel."""

from .mutation import Mutation


def _autograd(name, file, old, new, *tests, **options):
    return Mutation(name, f"pypeft_fast/autograd/{file}", old, new, tests, **options)


def _merging(name, file, old, new, *tests, **options):
    return Mutation(name, f"pypeft_fast/{file}", old, new, tests, **options)


LORA, DORA, IA3 = "tests/autograd/test_lora.py", "tests/autograd/test_dora.py", "tests/autograd/test_ia3.py"
EVERY = "tests/autograd/test_every_function.py"
NORM = "tests/ops/test_every_op.py -k dora_norm"
MLP, BOTTLENECK = "tests/autograd/test_lora_mlp.py", "tests/autograd/test_bottleneck.py"
NN, LAYERS, ADAPTERS = "tests/nn", "tests/model/layers/test_exact_merge.py", "tests/model/test_adapters.py"

AUTOGRAD = [
    _autograd("lora-ds-saved-for-dx-only", "lora.py", "need_dS = need_x or need_A", "need_dS = need_x", LORA),
    _merging("lora-ds-for-dx-only", "ops/lora_backward.py",
              "dS, dB = ds_db(grad, lora_B, s, scaling, need_dX or need_dA",
              "dS, dB = ds_db(grad, lora_B, s, scaling, need_dX", LORA, "tests/ops/test_lora_backward.py"),
    _autograd("lora-x-for-da-only", "lora.py", "x if need_A or need_weight else None", "x if need_A else None",
              EVERY),
    _autograd("lora-drops-in-eval", "lora.py", "p if training else 0.0", "p", LORA),
    _autograd("lora-frozen-part-not-saved", "lora.py", "mask if need_dS else None", "mask if need_x else None", LORA),
    _autograd("dora-mask-lost-for-dw", "dora.py", "p > 0 and (need_dS or need_weight)", "p > 0 and need_dS", EVERY),
    _autograd("dora-db-of-no-rows", "dora.py", "factor * dB if dY.shape[0] else dB", "factor * dB", DORA),
    _autograd("dora-dx-counts-the-base-twice", "dora.py", "scaled(dY, g - 1)", "scaled(dY, g)", DORA),
    _autograd("dora-db-not-scaled", "dora.py", "factor * dB if", "dB if", DORA),
    _autograd("dora-magnitude-of-a-zero-row", "dora.py", ".masked_fill(norm == 0, 0.0)", "", DORA),
    _merging("dora-norm-not-scaled", "ops/dora_norm.py", "(B * cross).sum(1), alpha=scaling)", "(B * cross).sum(1))",
              NORM),
    _merging("dora-norm-cross-term-once", "ops/dora_norm.py", "beta=2.0", "beta=1.0", NORM),
    _merging("dora-norm-of-a-cancelled-row", "ops/dora_norm.py", ".clamp_min(0)", "", NORM, DORA),
    _autograd("dora-scale-of-a-zero-row", "dora_norm.py", ".masked_fill(norm == 0, 1.0)", "", DORA),
    _autograd("ia3-z-always-saved", "ia3.py", "need_z = need_l and not feedforward", "need_z = not feedforward", IA3),
    _autograd("ia3-dl-without-z", "ia3.py", "(rows if feedforward else z)", "(rows if feedforward else dY)", IA3),
    _autograd("ia3-db-not-scaled", "ia3.py", "dZ = dY if feedforward else scaled(dY, ia3_l)", "dZ = dY", IA3),
    _autograd("mlp-ds-for-h-only", "lora_mlp.py", "need_h or need_A, need_B)", "need_h, need_B)", MLP),
    _autograd("mlp-inputs-not-for-dw", "lora_mlp.py", "need_h or need_A or need_weight", "need_h or need_A", MLP),
    _autograd("mlp-gradients-exchanged", "lora_mlp.py", "dgate if need_gate else None, dup if need_up",
              "dup if need_gate else None, dgate if need_up", MLP),
    _autograd("bottleneck-d-up-not-scaled", "bottleneck.py", "d_up * ctx.scaling, dz", "d_up, dz", BOTTLENECK),
    _autograd("bottleneck-up-bias-not-scaled", "bottleneck.py", "y + scaling * up_bias", "y + up_bias", BOTTLENECK),
    _autograd("bottleneck-residual-lost", "bottleneck.py", "d_normed + dY if ctx.own_residual else d_normed",
              "d_normed", BOTTLENECK),
    _autograd("bitfit-sum-in-half-precision", "bitfit.py", ".sum(0, dtype=wide)", ".sum(0)",
              "tests/autograd/test_bitfit.py"),
    _autograd("scaling-rounded-to-half", "_scaling.py", "p.to(torch.promote_types(p.dtype, torch.float32)) * factor",
              "p * factor", "tests/autograd/test_scaling.py"),
    _autograd("autocast-of-float64", "_autocast.py", "t is None or t.dtype == torch.float64", "t is None",
              "tests/autograd/test_autocast.py", LORA),
    _autograd("second-derivatives-are-zero", "_first_order.py", "if not torch.is_grad_enabled():", "if True:",
              "tests/autograd/test_first_order.py"),
    _autograd("frozen-by-anyone", "_still_trains.py", 'getattr(parameter, "frozen_by_switching", False)', "True",
              "tests/autograd/test_still_trains.py"),
    _autograd("output-is-a-view", "_shaped.py", "else out.detach()", "else out",
              "tests/autograd/test_first_order.py"),
]  # fmt: skip

MERGING = [
    _merging("merge-delta-not-scaled", "nn/merge.py", ".mul_(scaling)", "", NN),
    _merging("merge-in-place", "nn/merge.py", ", copy=True)", ")", NN),
    _merging("merge-dora-length-of-the-base", "nn/merge.py", "vector_norm(total, dim=1)",
             "vector_norm(weight, dim=1)", NN),
    _merging("merge-twice", "nn/adapter_linear.py", "if not self.merged:", "if True:", "tests/nn/test_merging.py"),
    _merging("merge-marked-first", "nn/adapter_linear.py", 'self._check_own("merge", values)',
             'self._frozen = {}; self._check_own("merge", values)', "tests/nn/test_merging.py"),
    _merging("merge-lost-by-a-cast", "nn/adapter_linear.py", "merged = self.merged", "merged = False", NN),
    _merging("merge-saved-as-merged", "nn/adapter_linear.py", "(self._frozen or {}).items()", "{}.items()", NN),
    _merging("layer-merges-again", "model/layers/exact_merge.py", "check_adapters_to_merge(self, adapter_names) or ()",
             "(adapter_names or self.active_adapters)", LAYERS, ADAPTERS),
    _merging("layer-forgets-the-first-base", "model/layers/exact_merge.py",
             "self._frozen or (now, before_bias), self._held or held", "(now, before_bias), held", LAYERS, ADAPTERS),
    _merging("layer-stays-broken", "model/layers/exact_merge.py", "except (ValueError, RuntimeError):",
             "except KeyError:", LAYERS, ADAPTERS),
    _merging("layer-failed-but-named", "model/layers/exact_merge.py", "self.merged_adapters[:] = merged", "pass",
             LAYERS),
    _merging("layer-names-stay-merged", "model/layers/exact_merge.py", "self.merged_adapters.clear()", "pass", LAYERS,
             ADAPTERS),
    _merging("layer-deletes-the-adapter-alone", "model/layers/exact_merge.py",
             "if adapter_name in self.merged_adapters:", "if False:", LAYERS),
    _merging("layer-adds-the-merged-twice", "model/layers/exact_merge.py",
             "self._frozen[0] if self._frozen else now", "now", LAYERS, ADAPTERS),
    _merging("dora-layer-length-of-the-sum", "model/layers/dora.py", "vector_norm(frozen + delta, dim=1)",
             "vector_norm(total, dim=1)", LAYERS),
]  # fmt: skip

SUM, MIXED = "tests/autograd/test_lora_sum.py", "tests/model/joints/test_mixed_rows.py"
KEPT, TRAINING = "tests/model/layers/test_lora_rows.py", "tests/model/joints/test_training_rows.py"
TABLE = "tests/ops/test_adapter_table.py"

ROWS = [
    _autograd("sum-mask-of-the-first", "lora_sum.py", "seeds[i : i + 1]", "seeds[:1]", SUM),
    _autograd("sum-dx-of-the-last", "lora_sum.py", "else dX + lora_dx(*its)", "else lora_dx(*its)", SUM),
    _autograd("sum-scaling-lost", "lora_sum.py", "B.to(w) * scaling for", "B.to(w) for", SUM),
    _merging("rows-adapter-of-the-neighbour", "model/joints/named_rows.py", "[place.get(name, -1) for",
             "[max(place.get(name, -1) - 1, -1) for", MIXED),
    _merging("rows-of-the-base-get-an-adapter", "model/joints/named_rows.py", "place.get(name, -1)",
             "place.get(name, 0)", MIXED),
    _merging("rows-of-one-token", "model/joints/named_rows.py", "index.repeat_interleave(repeats)",
             "index.repeat(repeats)", MIXED),
    _merging("rows-of-beams-apart", "model/joints/rows.py", "tuple(name for name in names for _ in range(expand))",
             "names * expand", "tests/model/joints/test_rows.py -k beams"),
    _merging("rows-scaling-of-the-neighbour", "model/layers/lora_rows.py", "[part.scaling for part in parts]",
             "[part.scaling for part in (*parts[1:], parts[0])]", MIXED),
    _merging("rows-rate-of-the-first", "model/layers/lora_rows.py", "float(part.p) for part in parts",
             "float(parts[0].p) for part in parts", MIXED, KEPT),
    _merging("rows-adapters-of-the-batch-before", "model/layers/peft_lora.py", "self._call_cache.rows.get(active)",
             "next(iter(self._call_cache.rows.values()), None)", KEPT),
    _merging("rows-adapters-that-no-longer-hold", "model/layers/peft_lora.py", " or not its.still_holds(self)", "",
             KEPT),
    _merging("rows-adapters-of-another-base", "model/layers/peft_lora.py", "its.beside != beside or ", "", KEPT),
    _merging("rows-scaling-of-the-call-before", "model/layers/lora_rows.py",
             "self._keep(layer.scaling, *self.names)", "pass", KEPT),
    _merging("rows-weights-beside-the-parameters", "model/layers/lora_rows.py",
             "all(map(is_, weights, tensors))", "True", KEPT),
    _merging("rows-mappings-of-any-kind", "model/layers/lora_rows.py", "all(type(of) in _PLAIN for of in self._dicts)",
             "True", KEPT),
    _merging("rows-kept-while-compiling", "model/layers/peft_lora.py", "None if compiling else self._call_cache",
             "self._call_cache", KEPT),
    _merging("rows-table-of-another-dtype", "model/layers/lora_rows.py", "self.table.holds()", "True", KEPT),
    _merging("rows-table-while-differentiated", "_dispatcher.py", "and needs_no_derivative()", "", TABLE),
    _merging("rows-table-whatever-is-forced", "_op.py", 'and _forced in (None, "cpu")', "", TABLE),
    _merging("rows-table-under-a-mode-of-functions", "ops/adapter_table.py", " or _len_torch_function_stack() > 0", "",
             TABLE),
    _merging("rows-table-of-copies", "ops/adapter_table.py", "t.is_neg() or t._is_zerotensor() for t",
             "False for t", TABLE),
    _merging("rows-table-during-a-collection", "ops/adapter_table.py", 'info["generation"] == 2', "False", TABLE, KEPT),
    _merging("rows-table-at-once", "ops/adapter_table.py", "if not self._has_been_called:", "if False:", TABLE),
    _merging("rows-table-under-a-mode", "_dispatcher.py", "and _len_torch_dispatch_stack() == 0", "", TABLE),
    _merging("rows-table-of-any-frozen-weight", "ops/adapter_table.py", "if not multi_lora_forward.tells(",
             "if False and not multi_lora_forward.tells(", TABLE),
    _merging("rows-table-keeps-parameters-that-move", "model/layers/peft_lora.py",
             "self._call_cache.rows = {}  # so that parameters", "pass  #", KEPT),
    _merging("rows-table-keeps-parameters-that-are-loaded", "model/layers/peft_lora.py",
             "self._call_cache.rows = {}  # as in _apply", "pass", KEPT),
    _merging("rows-run-again-without-names", "model/joints/checkpointed_rows.py", "if found is not None:", "if False:",
             TRAINING),
]  # fmt: skip

BOUND = "tests/ops/test_host_bound.py"
CHOICE = [
    _merging("choice-any-weight-is-small", "ops/_host_bound.py",
             "x.shape[-1] * N * x.element_size() <= WEIGHT_BYTES", "True", BOUND),
    _merging("choice-whole-on-an-old-gpu", "_op.py", " and _native.has_kernels_for(args[0].get_device())", "", BOUND),
    _merging("choice-whole-without-the-library", "_op.py", ' and self._named("cuda").why_not(args) is None', "", BOUND),
    _merging("choice-direct-whatever-is-forced", "_op.py", 'return direct if _forced == "cuda" else None',
             "return direct", BOUND),
]  # fmt: skip

MUTATIONS = [*AUTOGRAD, *MERGING, *ROWS, *CHOICE]
