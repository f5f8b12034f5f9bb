"""The documentation site; ``make docs`` builds it, and a warning is an error."""

from flax import nnx
from sphinx.util import inspect

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
nitpicky = True  # a name that leads nowhere is a warning, too
exclude_patterns = ["README.md"]  # the index includes it

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes stand in the docstrings
myst_heading_anchors = 3
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_ivar = True  # attributes in a list; else they would stand twice, as members too


def setup(app):
    """Sphinx calls it."""
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-signature", _sign_modules)


def _skip_fields(_app, _what, _name, member, _skip, _options):
    """The fields of a NamedTuple have their words in its docstring."""
    return True if (member.__doc__ or "").startswith("Alias for field number") else None


def _sign_modules(_app, what, _name, member, _options, _signature, _returns):
    """The metaclass of Flax's modules hides the arguments of their constructors."""
    if what != "class" or not issubclass(member, nnx.Module):
        return None
    arguments = inspect.signature(member.__init__, bound_method=True)
    return inspect.stringify_signature(arguments, show_annotation=False), None
