"""The Python in README, CONTRIBUTING and docs/ runs, page by page, and links lead somewhere."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("cheap_parameters", "loops")
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.relative_to(DOCS)}" for p in DOCS.rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_code_runs_and_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
        for line in block.splitlines():
            shape = re.match(r"(\S.*\.shape)  # (\([\d, ]+\))", line)
            if shape:
                assert str(eval(shape[1], names)) == shape[2]
    for path, heading in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if heading:
            assert heading in _anchors(target.read_text()), f"{path}#{heading}"


def _anchors(text: str) -> set[str]:
    """The headings of a page as GitHub and MyST name them in an address."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\(([^)#:]+)", (DOCS / "README.md").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | {
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.rst")
    }
    assert pages - {"README.md", "index.md"} <= linked
