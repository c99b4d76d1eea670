"""What transformers, tokenizers, safetensors and peft raise about a file, a value or a template that is amiss.

Exception among them stands for that class alone, see errors.as_user_error.
"""

import re

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    re.error,
    SafetensorError,
    StrictDataclassError,
    Exception,
)
