"""The documentation site; ``make docs`` builds it, and a warning is an error."""

project = "jaxnets"
author = "the authors of jaxnets"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
root_doc = "index"
exclude_patterns = ["README.md"]  # the index includes it

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes stand in the docstrings
myst_heading_anchors = 3
napoleon_numpy_docstring = False
