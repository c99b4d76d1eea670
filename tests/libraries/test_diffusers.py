"""LoRA adapters of diffusers, which injects the layers of PEFT, are fused in place."""

import peft
import torch
from diffusers import UNet2DConditionModel

import pypeft_fast as pf


def unet(adapter=True):
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    if adapter:
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        model.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False), "style")
    return model


def loss(model):
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return model(x, torch.tensor([3, 7]), encoder_hidden_states=text).sample.square().mean()


def test_losses_gradients_and_files_are_pefts(tmp_path):
    theirs, ours = unet(), unet()
    report = pf.fuse(ours)
    assert len(report.fused) >= 16 and not report.left
    expected, value = loss(theirs), loss(ours)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    value.backward()
    assert report.calls() == {"fused": len(report.fused)}
    for (_, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    ours.save_lora_adapter(tmp_path, adapter_name="style")
    loaded = unet(adapter=False)
    loaded.load_lora_adapter(
        tmp_path, adapter_name="style", prefix=None, weight_name="pytorch_lora_weights.safetensors"
    )
    pf.fuse(loaded)
    torch.testing.assert_close(loss(loaded), value.detach(), rtol=1e-5, atol=1e-6)
    loaded.disable_adapters()
    assert abs(loss(loaded) - value) > 1e-6
