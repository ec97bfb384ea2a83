"""README, docs and pages of results as their blocks, inline code and links."""

import functools
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("*.md", "docs/**/*.md", "results/*.md", "results/published/*/README.md")
PAGES = sorted(page for pattern in PATTERNS for page in ROOT.glob(pattern))
PAGES = [page for page in PAGES if "_build" not in page.parts]
NOT_RUN = re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. run: whether no comment above it says that it is not."""

    page: Path
    line: int
    language: str
    text: str
    run: bool

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@functools.cache
def _tokens(page):
    return MarkdownIt().enable("table").parse(page.read_text())


def blocks(language):
    """Every block of a language, page by page."""
    every = []
    for page in PAGES:
        tokens = _tokens(page)
        for before, token in zip([None, *tokens], tokens, strict=False):
            if token.type == "fence" and token.info.split(" ")[0] == language:
                is_excluded = before is not None and before.type == "html_block" and NOT_RUN.search(before.content)
                every.append(Block(page, token.map[0] + 1, language, token.content, not is_excluded))
    return every


def files(page):
    """The blocks of a page that say in their first line which file they are: its path to its text."""
    every = [block for language in ("python", "yaml") for block in blocks(language) if block.page == page]
    named = {block.text.splitlines()[0].removeprefix("# "): block.text for block in every if block.text[:2] == "# "}
    return {path: text for path, text in named.items() if re.fullmatch(r"[\w/]+\.(py|yaml)", path)}


def inline():
    """(where, text) of all code in backticks."""
    return [
        (f"{page.relative_to(ROOT)}:{token.map[0] + 1}", child.content)
        for page in PAGES
        for token in _tokens(page)
        for child in token.children or []
        if child.type == "code_inline"
    ]


def links(page):
    """Where a page's links and pictures lead."""
    targets = [child.attrs.get("href") or child.attrs.get("src") for t in _tokens(page) for child in t.children or []]
    return [target for target in targets if target]


def anchors(page):
    """What a link to a page may name after #."""
    tokens = _tokens(page)
    headings = [text.content for mark, text in pairwise(tokens) if mark.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
