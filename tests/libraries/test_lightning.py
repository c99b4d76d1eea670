"""Lightning trains our models without changes, with the same losses as PEFT."""

import lightning
import peft
import torch

import pypeft_fast as pf
from tests.model.zoo import IDS, build


class Module(lightning.LightningModule):
    def __init__(self, library):
        super().__init__()
        torch.manual_seed(0)
        config = library.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        self.model, self.losses = library.get_peft_model(build("llama"), config), []

    def training_step(self, batch, index):
        loss = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_losses_are_pefts_and_the_layers_are_fused(tmp_path):
    losses = {}
    for library in (peft, pf):
        module = Module(library)
        trainer = lightning.Trainer(
            max_steps=4, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
        )
        trainer.fit(module, torch.utils.data.DataLoader(IDS.repeat(4, 1), batch_size=3))
        losses[library] = module.losses
    report = pf.fuse(module.model)
    assert report.calls() == {"fused": 4 * len(report.fused)} and not report.left
    assert losses[pf][-1] < losses[pf][0]
    torch.testing.assert_close(torch.tensor(losses[pf]), torch.tensor(losses[peft]), rtol=1e-5, atol=1e-5)
    restored = Module(pf)
    state = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)["state_dict"]
    restored.load_state_dict(state)
    with torch.no_grad():
        expected = module.model(input_ids=IDS).logits
        torch.testing.assert_close(restored.model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
