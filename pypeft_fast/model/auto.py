"""PEFT's AutoPeftModel classes, which load base model and adapter; here the result is this package's PeftModel."""

import peft

from . import peft_model


class AutoPeftModel(peft.AutoPeftModel):
    """peft.AutoPeftModel that returns this package's PeftModel."""

    _target_peft_class = peft_model.PeftModel


class AutoPeftModelForCausalLM(peft.AutoPeftModelForCausalLM):
    """peft.AutoPeftModelForCausalLM that returns this package's PeftModelForCausalLM."""

    _target_peft_class = peft_model.PeftModelForCausalLM


class AutoPeftModelForSeq2SeqLM(peft.AutoPeftModelForSeq2SeqLM):
    """peft.AutoPeftModelForSeq2SeqLM that returns this package's PeftModelForSeq2SeqLM."""

    _target_peft_class = peft_model.PeftModelForSeq2SeqLM


class AutoPeftModelForSequenceClassification(peft.AutoPeftModelForSequenceClassification):
    """peft.AutoPeftModelForSequenceClassification that returns this package's PeftModelForSequenceClassification."""

    _target_peft_class = peft_model.PeftModelForSequenceClassification


class AutoPeftModelForTokenClassification(peft.AutoPeftModelForTokenClassification):
    """peft.AutoPeftModelForTokenClassification that returns this package's PeftModelForTokenClassification."""

    _target_peft_class = peft_model.PeftModelForTokenClassification


class AutoPeftModelForQuestionAnswering(peft.AutoPeftModelForQuestionAnswering):
    """peft.AutoPeftModelForQuestionAnswering that returns this package's PeftModelForQuestionAnswering."""

    _target_peft_class = peft_model.PeftModelForQuestionAnswering


class AutoPeftModelForFeatureExtraction(peft.AutoPeftModelForFeatureExtraction):
    """peft.AutoPeftModelForFeatureExtraction that returns this package's PeftModelForFeatureExtraction."""

    _target_peft_class = peft_model.PeftModelForFeatureExtraction
