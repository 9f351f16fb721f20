"""Docstrings have the house form: one plain sentence first; where tensors go in or out, their shapes."""

from __future__ import annotations

import ast
import re

import pytest
from test_architecture import FILES, name_of, only_declared, public, tree_of

SHAPE = re.compile(r"\((?:\d|[A-Z]|d|n)\w*(?:,|\)|\+)|\(\)|scalar|shape")
OPAQUE = {"begin_step", "state", "load", "modules", "parameters"}
"""Methods that pass on what others describe."""

DEFINITIONS = [(name_of(path), name, node) for path in FILES for name, node in public(tree_of(path), "")]
METHOD = [
    pytest.param(node, id=f"{module}.{name}")
    for module, name, node in DEFINITIONS
    if module.split(".")[0] == "diffusion" and isinstance(node, ast.FunctionDef) and node.name not in OPAQUE and not only_declared(node)
]


@pytest.mark.parametrize("module", sorted({module for module, _, _ in DEFINITIONS}))
def test_the_first_paragraph_is_a_sentence(module):
    for where, name, node in DEFINITIONS:
        if where == module and (text := ast.get_docstring(node)):
            first = text.split("\n\n")[0].strip()
            assert first.endswith((".", ":")), f"{module}.{name}: {first!r}"
            assert not first.lower().startswith(("this function", "this method", "this class")), f"{module}.{name}"


@pytest.mark.parametrize("node", METHOD)
def test_functions_of_the_method_give_shapes(node: ast.FunctionDef):
    signature = f"{ast.unparse(node.args)} {ast.unparse(node.returns) if node.returns else ''}"
    if re.search(r"\bTensor\b", signature):
        assert SHAPE.search(ast.get_docstring(node) or "")
