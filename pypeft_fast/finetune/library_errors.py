"""The errors that transformers, tokenizers, safetensors and peft raise for a bad file, value or template.

Exception in the list means exactly the class Exception, not its subclasses: see errors.as_user_error.
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
