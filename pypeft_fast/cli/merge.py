"""`pypeft-fast merge`: a base model with an adapter folded into its weights, as a model's folder of its own."""

from pathlib import Path

from . import threads
from .adapter_files import check_files
from .common import add_dtype, add_model, add_threads
from .errors import UserError, as_user_error, need
from .models import check_base, load_base
from .option_values import folder
from .terminal import calm_libraries, say
from .whole_files import new_folder

SUMMARY = "fold an adapter into the weights of its base model, as a model of its own"
EXAMPLE = "pypeft-fast merge --model smollm2 --adapter my-adapter --output my-model"
ADVICE = """\
The output folder is a model in Hugging Face's layout (safetensors, config, tokenizer): for transformers, converters and
--model of the other subcommands. Prompt and prefix tuning and bottleneck adapters have no weights to fold in."""


def add_arguments(parser) -> None:
    add_model(parser)
    parser.add_argument("--adapter", required=True, metavar="DIR", help="the adapter's folder")
    parser.add_argument("--output", required=True, type=folder, metavar="DIR", help="the folder to write, a new one")
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
    from safetensors import SafetensorError

    from .merged import merged

    calm_libraries()
    base, tokenizer = load_base(arguments.model, arguments.dtype)
    model = merged(base, Path(arguments.adapter))
    kinds = (OSError, RuntimeError, SafetensorError)
    with (
        as_user_error(f"--output {arguments.output} cannot be written", kinds),
        new_folder(arguments.output) as scratch,
    ):
        tokenizer.save_pretrained(scratch)
        model.save_pretrained(scratch)
    say(f"the merged model is in {arguments.output}")
    say(f"try it: pypeft-fast chat --model {arguments.output}")
