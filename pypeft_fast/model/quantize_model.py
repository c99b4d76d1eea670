"""quantize_model(): replaces the linear layers of a transformers model by bitsandbytes' modules, in place."""

from collections.abc import Iterable, Sequence
from types import ModuleType

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from .._heap import give_back_freed
from ..frozen.modules import weight_of

FORMATS = ("nf4", "fp4", "int8")
BLOCK_SIZES = tuple(2**i for i in range(5, 13))  # those of bitsandbytes
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantize_model(
    model: PreTrainedModel,
    format: str = "nf4",
    *,
    skip: Sequence[str] = ("lm_head",),
    block_size: int = 64,
    nested: bool = True,
    compute_dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Replaces the model's linear layers by bitsandbytes' Linear4bit or Linear8bitLt, in place: a base for adapters.

    The result equals that of `from_pretrained(..., quantization_config=BitsAndBytesConfig(...))`, but starts from a
    model in memory: the weights have the same bytes, and the attributes that transformers and PEFT read are set
    (`model.is_loaded_in_4bit` or `is_loaded_in_8bit`, `model.config.quantization_config`, `model.hf_quantizer`).
    `quantize` gives the same bytes; for int8 it does so for the weight rounded to float16. The layers are quantised one
    at a time, and each dense weight is freed at once. As in transformers, the output embeddings, weights tied to them
    and the last module of the model stay dense; every other torch.nn.Linear and transformers' Conv1D is quantised.

    On a CPU, evaluating the model does not change the stored weights; bitsandbytes by itself would reorder the codes
    and round the scales to bfloat16 at the first call.

    Args:
        model: a transformers model without adapters, its weights float32, bfloat16 or float16.
        format: "nf4" or "fp4" (4 bits a weight, QLoRA, arXiv:2305.14314) or "int8" (LLM.int8, arXiv:2208.07339).
        skip: further layers that stay dense: full names, prefixes of names up to a dot, suffixes of names, or regular
            expressions that match the start of a name.
        block_size: for nf4 and fp4, the number of weights that share a scale, a power of two from 32 to 4096.
        nested: for nf4 and fp4, whether the scales are stored in 8 bits ("double quantisation").
        compute_dtype: for nf4 and fp4, the dtype of the products; None: the weight's dtype.

    Raises:
        ImportError: bitsandbytes is not installed.
        TypeError: model is no PreTrainedModel, skip no list of names or nested no bool; or the dtype of a weight or
            compute_dtype is not accepted.
        ValueError: format or block_size is unknown; the model is quantised already or has weights on the meta device;
            no linear layer has a name in skip; or no layer is left to quantise. The model does not change then.
    """
    _check(model, format, block_size, nested, compute_dtype)
    bitsandbytes = _bitsandbytes()
    skip = _names(skip)
    patterns = _patterns(model, skip)
    names = _layers(model, patterns, skip)
    _check_weights(model, names)
    dtype = compute_dtype or model.get_submodule(names[0]).weight.dtype
    for name in names:
        linear = model.get_submodule(name)
        if format == "int8":
            new = _eight_bit(bitsandbytes, linear)
        else:
            new = _four_bit(bitsandbytes, linear, format, block_size, nested, compute_dtype or linear.weight.dtype)
        new.source_cls = type(linear)
        new.bias = linear.bias
        new.requires_grad_(False).train(linear.training)
        model.set_submodule(name, new)
        del linear
        give_back_freed()  # what quantising a layer took: codes in between would keep the heap from shrinking
    _set_attributes(model, _config(format, nested, dtype, sorted(patterns)), patterns)
    return model


def layers_to_quantize(model: PreTrainedModel, skip: Sequence[str] = ("lm_head",)) -> list[str]:
    """The names of the layers that `quantize_model` quantises; the weights may be on the meta device.

    ValueError as from `quantize_model` if no linear layer has a name in skip, or no layer is left.
    """
    skip = _names(skip)
    return _layers(model, _patterns(model, skip), skip)


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            "quantize_model makes modules of bitsandbytes, which is not installed here; run: pip install bitsandbytes"
        ) from error
    return bitsandbytes


def _check(model, format, block_size, nested, compute_dtype):
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"quantize_model: model is a {type(model).__name__}, expected a transformers.PreTrainedModel: quantise the "
            "base model first, then add adapters with get_peft_model"
        )
    if format not in FORMATS:
        raise ValueError(f"quantize_model: format={format!r}; choose one of {', '.join(FORMATS)}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(
            f"quantize_model: block_size={block_size!r}; bitsandbytes has {', '.join(map(str, BLOCK_SIZES))}"
        )
    if not isinstance(nested, bool):
        raise TypeError(f"quantize_model: nested={nested!r}; give True or False")
    if compute_dtype not in (None, *DTYPES):
        raise TypeError(
            f"quantize_model: compute_dtype={compute_dtype!r}; accepted are torch.float32, torch.bfloat16 and "
            "torch.float16"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        method = getattr(model.hf_quantizer.quantization_config.quant_method, "value", "some method")
        raise ValueError(
            f"quantize_model: model is quantised already, by {method}; load it without quantization_config"
        )


def _names(skip) -> list[str]:
    """skip as a list; TypeError if it is none of strings."""
    names = None if isinstance(skip, str) or not isinstance(skip, Iterable) else list(skip)
    if names is None or not all(isinstance(name, str) for name in names):
        raise TypeError(f"quantize_model: skip={skip!r} must be a list of names, such as ['lm_head']")
    return names


def _patterns(model, skip) -> list[str]:
    """The names and expressions of the modules that stay dense."""
    kept = AutoHfQuantizer.from_config(_config("nf4", True, torch.float32, []), pre_quantized=False)
    return kept.get_modules_to_not_convert(model, skip, model._keep_in_fp32_modules, add_default_skips=True)


def _layers(model, patterns, skip) -> list[str]:
    """The names of the layers to quantise: the linear layers that match no pattern."""
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear or isinstance(m, Conv1D)}
    for given in skip:
        if given != "lm_head" and all(should_convert_module(name, [given]) for name in linear):
            raise ValueError(
                f"quantize_model: skip: no linear layer is called {given!r}; {next(iter(linear))!r} is one"
            )
    names = [name for name in linear if should_convert_module(name, patterns)]
    if not names:
        raise ValueError(f"quantize_model: no linear layer of {type(model).__name__} is left beside skip={skip}")
    return names


def _check_weights(model, names) -> None:
    for name in names:
        weight = model.get_submodule(name).weight
        if weight.is_meta:
            raise ValueError(f"quantize_model: {name} has no memory (device meta); load it without offloading")
        if weight.dtype not in DTYPES:
            raise TypeError(
                f"quantize_model: the weight of {name} is {weight.dtype}; accepted are float32, bfloat16 and float16"
            )


def _config(format, nested, compute_dtype, skipped) -> BitsAndBytesConfig:
    if format == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=format,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skipped,
    )


def _four_bit(bitsandbytes, linear, format, block_size, nested, compute_dtype) -> nn.Module:
    weight = weight_of(linear).detach()
    N, K = weight.shape
    options = {"compress_statistics": nested, "quant_type": format}
    new = bitsandbytes.nn.Linear4bit(K, N, False, compute_dtype, device="meta", **options)
    params = bitsandbytes.nn.Params4bit(weight, requires_grad=False, blocksize=block_size, module=new, **options)
    new.weight = params.to(weight.device)  # quantises
    # With True, the first evaluation on a CPU with AVX-512 BF16 reorders the codes and rounds the scales to bfloat16.
    new.support_avx512bf16_for_cpu = False
    return new


def _eight_bit(bitsandbytes, linear) -> nn.Module:
    weight = weight_of(linear).detach()
    N, K = weight.shape
    threshold = BitsAndBytesConfig(load_in_8bit=True).llm_int8_threshold
    new = bitsandbytes.nn.Linear8bitLt(K, N, False, has_fp16_weights=False, threshold=threshold, device="meta")
    params = bitsandbytes.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    new.weight = params.to(weight.device)  # quantises, and only a weight that is on a CPU before
    return new


def _set_attributes(model, config, patterns):
    """Sets the attributes that transformers' own loading sets and that Trainer, PEFT and save_pretrained read."""
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.modules_to_not_convert = patterns
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = config.quant_method
    quantizer.postprocess_model(model)
