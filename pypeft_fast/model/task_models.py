"""get_peft_model, and a PeftModel for each task.

One class a task, so that Trainer, which reads the argument names off forward, finds the inputs and the labels.
"""

from .config import TaskType
from .peft_model import PeftModel, check_config


def get_peft_model(model, peft_config, adapter_name="default", *, autocast_adapter_dtype=True) -> "PeftModel":
    """Puts the adapter that peft_config describes on a model, in place, and freezes the rest.

    autocast_adapter_dtype: adapters over a float16 or bfloat16 layer are float32.

    Raises ValueError or TypeError before anything is changed: a model that is wrapped already, a config that matches
    nothing or asks for what is not supported.
    """
    check_config(peft_config)
    kind = task_model(peft_config)
    return kind(model, peft_config, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)


def task_model(peft_config) -> type[PeftModel]:
    """The class for a config's task."""
    return TASK_MODELS.get(peft_config.task_type, PeftModel)


class PeftModelForCausalLM(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, labels=labels)
        return super().forward(**_given(given), **kwargs)


class PeftModelForSeq2SeqLM(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, labels=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return super().forward(**_given(given | {"decoder_input_ids": decoder_input_ids}), **kwargs)


class PeftModelForClassification(PeftModel):
    """Of sequences and of tokens."""

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, labels=labels)
        return super().forward(**_given(given), **kwargs)


class PeftModelForQuestionAnswering(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, start_positions=None, end_positions=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask)
        given |= dict(start_positions=start_positions, end_positions=end_positions)
        return super().forward(**_given(given), **kwargs)


class PeftModelForFeatureExtraction(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return super().forward(**_given(given), **kwargs)


def _given(arguments):
    return {name: value for name, value in arguments.items() if value is not None}


TASK_MODELS = {
    TaskType.CAUSAL_LM: PeftModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: PeftModelForSeq2SeqLM,
    TaskType.SEQ_CLS: PeftModelForClassification,
    TaskType.TOKEN_CLS: PeftModelForClassification,
    TaskType.QUESTION_ANS: PeftModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: PeftModelForFeatureExtraction,
}
