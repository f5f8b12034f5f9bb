"""The Python in docs/ runs, page by page."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_code_runs_and_links_lead_somewhere(page):
    text = (DOCS / page).read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
        for line in block.splitlines():
            shape = re.match(r"(\S.*\.shape)  # (\([\d, ]+\))", line)
            if shape:
                assert str(eval(shape[1], names)) == shape[2]
    for link in re.findall(r"\]\(([^)#:]+)", text):
        assert ((DOCS / page).parent / link).exists(), link
