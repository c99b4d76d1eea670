"""Steps of the benchmarks of a whole language model: a training step and the decoding of one token."""

import torch


def randomize_adapters(model):
    """Gives parameters that start as zeros or ones other values, so that the check detects a missing adapter."""
    generator = torch.Generator("cpu").manual_seed(1)  # on the CPU for any device of the model
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "ia3_l" in name:
            std = 0.05 if "lora_B" in name else 0.2
            parameter.data += std * torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter.device)


def graph_to_the_embeddings(model):
    """Makes the embeddings' output require grad, so that backward of a frozen model also runs through all layers."""
    return model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())


def loss_of(model, tokens):
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def training_steps(made, tokens):
    """{name: a function that runs forward and backward on the tokens} of {name: model}."""

    def step(model):
        loss_of(model, tokens).backward()
        model.zero_grad()

    return {name: lambda model=model: step(model) for name, model in made.items()}


def token_steps(made, prompt, **options):
    """({name: a function that decodes one token for each row of the prompt}, {name: its logits}), each with a cache.

    options: arguments of the models' forward. The models stay in eval mode.
    """
    from transformers import DynamicCache

    steps, logits = {}, {}
    for name, model in made.items():
        cache = DynamicCache()
        model.eval()(input_ids=prompt, past_key_values=cache, use_cache=True, **options)

        def step(model=model, cache=cache):
            token = model(input_ids=prompt[:, :1], past_key_values=cache, use_cache=True, **options).logits
            cache.crop(-1)
            return token

        steps[name], logits[name] = step, step()
    return steps, logits
