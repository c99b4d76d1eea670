"""The site of the documents is built without a warning, has every public name, and needs no network."""

import logging
import re

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import pypeft_fast as pf
from tests.docs.blocks import ROOT
from tests.interpreter import python


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    output = tmp_path_factory.mktemp("site") / "site"
    python("-m", "mkdocs", "build", "--strict", "--site-dir", output, expect_success=True)
    return output


def test_the_site_is_built_without_a_warning(site):
    """Strict: a wrong link or anchor, and a page that the navigation lacks, end the build."""
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    written = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert written <= pages
    assert {"CONTRIBUTING.html", "bench/results/traffic.html", "tests/emulator/index.html"} <= pages
    assert (site / "bench/results/fuse.png").stat().st_size > 1000
    assert 'src="bench/results/fuse.png"' in (site / "index.html").read_text()
    assert 'href="CONTRIBUTING.html#add-a-kernel"' in (site / "index.html").read_text()


def test_the_reference_holds_every_public_name(site):
    index = (site / "api.html").read_text()
    for module, page in ((pf, "api/pypeft_fast.html"), (pf.nn, "api/pypeft_fast/nn.html")):
        text = (site / page).read_text()
        for name in (name for name in module.__all__ if name != "nn"):
            assert f'id="{name}"' in text and f'href="{page}#{name}"' in index, name
    assert "arXiv:2106.09685" in (site / "api/pypeft_fast.html").read_text()
    layers = (site / "api/pypeft_fast/nn.html").read_text()
    assert 'href="../../api.html"' in layers
    for name in ("merge", "unmerge"):  # inherited
        assert f'href="nn/adapter_linear.html#AdapterLinear.{name}"' in layers
        assert f'id="AdapterLinear.{name}"' in (site / "api/pypeft_fast/nn/adapter_linear.html").read_text()
    assert "In a clone" not in index


def test_no_page_loads_from_the_network(site):
    loaded = re.compile(r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*href=["']?https?://""")
    imported = re.compile(r"""@import|url\(["']?(?:https?:)?//""")
    assert [str(p) for p in site.rglob("*.html") if loaded.search(p.read_text())] == []
    assert [str(p) for p in site.rglob("*.css") if imported.search(p.read_text())] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a](nowhere.md)", "nowhere.md"),
        ("[a](command.md#no-such-heading)", "no-such-heading"),
        ("[a](../bench/nowhere.md)", "nowhere.md"),
        ("[a](/command.md)", "absolute"),
    ],
)
def test_a_wrong_link_ends_the_build(tmp_path, caplog, text, says):
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Start\n\n{text}\n")
    (pages / "command.md").write_text("# Command\n")
    with caplog.at_level(logging.WARNING, "mkdocs"), pytest.raises(Abort):
        changes = {"docs_dir": str(pages), "nav": ["index.md", "command.md"], "hooks": [], "extra_css": []}
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True, **changes))
    assert says in caplog.text
