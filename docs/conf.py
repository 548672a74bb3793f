"""Sphinx's settings for `make docs`: the Markdown pages as they are, as a site.

The source is the repository's root, so that a link means the same here and on GitHub. The
navigation is the list of links in docs/index.md.
"""

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx

project = "vggdist"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*", "build", "datasets", "runs"]  # large folders without pages
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]  # the graph of imports in ARCHITECTURE.md
smartquotes = False  # two hyphens begin an option
html_theme = "furo"
html_title = "vggdist"
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Adds what Markdown alone cannot say."""
    app.connect("source-read", _add_navigation)
    app.connect("build-finished", _write_start_page)


def _add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    if name != root_doc:
        return
    for section in source[0].split("\n## ")[1:]:
        caption, _, links = section.partition("\n")
        names = [
            posixpath.normpath(f"docs/{link}") for link in re.findall(r"\]\((.*?)\.md\)", links)
        ]
        entries = "\n".join(f"/{name}" for name in names)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def _write_start_page(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")
