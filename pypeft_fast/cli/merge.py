"""`pypeft-fast merge`: merges an adapter into its base model's weights and saves the result as a model."""

import shlex
from pathlib import Path

from ..finetune import threads
from ..finetune.adapters.files import check_files
from ..finetune.base_models import check_base
from ..finetune.calm import calm_libraries
from ..finetune.errors import UserError, need
from ..finetune.quantized import QUANTIZE, trained_over
from .common import add_dtype, add_model, add_new_folder, add_threads
from .option_values import text
from .terminal import say

SUMMARY = "merge an adapter into the weights of its base model, and save the result as a model"
EXAMPLE = "pypeft-fast merge --model smollm2 --adapter my-adapter --output my-model"
ADVICE = """\
The output folder is a model in Hugging Face's layout (safetensors, config, tokenizer), for transformers, converters and
--model of the other subcommands. Adapters of prompt tuning, prefix tuning and bottlenecks cannot be merged.
An adapter that was trained with --quantize is also merged into the dense weights: rounding to 4 or 8 bits would lose a
part of the adapter."""


def add_arguments(parser) -> None:
    add_model(parser)
    parser.add_argument("--adapter", required=True, type=text, metavar="DIR", help="the adapter's folder")
    add_new_folder(parser)
    add_dtype(parser)
    add_threads(parser)


def run(arguments) -> None:
    need("transformers")
    check_base(arguments.model)
    if not Path(arguments.adapter).is_dir():
        raise UserError(f"--adapter {arguments.adapter}: no such folder")
    check_files(Path(arguments.adapter))
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output} exists; name a new folder")
    threads.use(arguments.threads)
    calm_libraries()
    from ..finetune.adapters.merged import save_merged

    save_merged(arguments.model, Path(arguments.adapter), arguments.output, arguments.dtype)
    if (format := trained_over(Path(arguments.adapter))) in QUANTIZE:
        say(
            f"note: the adapter was trained over a base model in {format} and is merged into the dense model: the "
            "answers may differ a little from those of the quantised model"
        )
    say(f"the merged model is in {arguments.output}")
    say(f"try it: pypeft-fast chat --model {shlex.quote(str(arguments.output))}")
