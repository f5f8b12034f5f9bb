"""The documentation site; ``make docs`` builds it, and a warning is an error."""

import inspect

from flax import nnx
from sphinx.util.inspect import stringify_signature

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
nitpick_ignore_regex = [("py:class", r"(?!jaxnets\.).*")]  # in signatures: other libraries' types
exclude_patterns = ["README.md"]  # the index includes it

autodoc_member_order = "bysource"
autodoc_typehints = "none"
maximum_signature_line_length = 80
myst_heading_anchors = 3
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_ivar = True  # attributes in a list; else they would stand twice, as members too


def setup(app):
    """Sphinx calls it."""
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-signature", _sign)


def _skip_fields(_app, _what, _name, member, _skip, _options):
    """The fields of a NamedTuple have their words in its docstring."""
    return True if (member.__doc__ or "").startswith("Alias for field number") else None


def _sign(_app, what, _name, member, _options, _signature, _returns):
    """Annotations as they are written, with their shapes; Sphinx would write out their unions.

    The metaclass of Flax's modules hides the arguments of their constructors.
    """
    is_module = what == "class" and issubclass(member, nnx.Module)
    if not is_module and what not in ("function", "method"):
        return None
    signature = inspect.signature(member.__init__ if is_module else member)
    named = [p for p in signature.parameters.values() if p.name != "self"]
    return stringify_signature(signature.replace(parameters=named)), None
