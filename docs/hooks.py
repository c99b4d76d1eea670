"""MkDocs' hooks of the site: files outside docs/ to which the pages link, and the API reference.

A page's links are relative to its place in the repository, so that they also work where the repository is read. In the
site docs/X is X, and every other file of the repository keeps its path.
"""

import posixpath
import re
import tempfile
from pathlib import Path

import api  # docs/api.py: MkDocs imports a hook with its folder on the path
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
START = "CONTRIBUTING.md"  # is in the navigation
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")
NAMES = re.compile("<!-- names -->.*<!-- /names -->", re.DOTALL)  # in api.md; between the marks: what a clone shows


def in_site(path: str) -> str:
    """The path in the site of a file of the repository."""
    return path.removeprefix(DOCS)


def in_repository(page: str) -> str:
    """The path in the repository of a page of the site."""
    return page if (ROOT / page).is_file() and not (ROOT / DOCS / page).is_file() else DOCS + page


def target(page: str, link: str) -> str | None:
    """The path in the repository of the file that a link names, both relative to the repository; None if none is."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if (ROOT / path).is_file() else None


def reached(pages: list[str]) -> set[str]:
    """The files of the repository that these pages, and the pages among these files, link to."""
    found, new = set(), list(pages)
    while new:
        page = new.pop()
        links = LINK.findall((ROOT / page).read_text(encoding="utf-8")) if page.endswith(".md") else []
        for path in (target(page, link) for link in links):
            if path is not None and path not in found:
                found.add(path)
                new.append(path)
    return found


def on_files(files, config):
    pages = [DOCS + file.src_uri for file in files.documentation_pages()]
    for path in sorted({START, *reached([START, *pages])}):
        if not path.startswith(DOCS):
            files.append(File(path, str(ROOT), config.site_dir, use_directory_urls=False))
    with tempfile.TemporaryDirectory() as scratch:
        api.build(Path(scratch))
        for path in sorted(Path(scratch).rglob("*")):
            if path.is_file() and path.name != "index.html":
                name = f"api/{path.relative_to(scratch).as_posix()}"
                files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    source = in_repository(page.file.src_uri)
    if not source.startswith(DOCS) and source != START:
        page.meta["search"] = {"exclude": True}  # tables of measurements, in which every word occurs
    if page.file.src_uri == "api.md":
        markdown = NAMES.sub(lambda _: api.tables(), markdown)

    def link(match):
        path = target(source, match[1])
        return match[1] if path is None else posixpath.relpath(in_site(path), posixpath.dirname(in_site(source)) or ".")

    return LINK.sub(link, markdown)
