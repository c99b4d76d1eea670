"""The reference of the public names can be built, and has an entry for each name."""

import pypeft_fast as pf
from tests.interpreter import python


def test_the_reference_holds_every_public_name(tmp_path):
    python("docs/api.py", "--output", tmp_path, expect_success=True)
    page = (tmp_path / "pypeft_fast.html").read_text()
    assert [name for name in pf.__all__ if name != "nn" and f'id="{name}"' not in page] == []
    layers = (tmp_path / "pypeft_fast/nn.html").read_text()
    assert all(f'id="{name}"' in layers for name in pf.nn.__all__)
    assert "arXiv:2106.09685" in page
