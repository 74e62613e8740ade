import ast
from pathlib import Path

import pytest

import piston.runtime
from piston.core import errors

SOURCE = Path(piston.runtime.__file__)


def declared():
    """What type checkers see: name to module, from the imports under TYPE_CHECKING."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def test_all_is_sorted_and_lists_nothing_twice():
    assert piston.runtime.__all__ == sorted(set(piston.runtime.__all__))


def test_all_is_what_type_checkers_see():
    assert piston.runtime.__all__ == sorted(declared())


@pytest.mark.parametrize("name", piston.runtime.__all__)
def test_every_public_name_comes_from_the_module_that_type_checkers_see(name):
    value = getattr(piston.runtime, name)
    assert value.__module__ == declared()[name]


def test_every_error_is_public():
    raised = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert set(raised) <= set(piston.runtime.__all__)


def test_dir_lists_every_public_name():
    assert set(piston.runtime.__all__) <= set(dir(piston.runtime))


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'piston\.runtime' has no attribute 'nothing'"):
        _ = piston.runtime.nothing


@pytest.mark.parametrize("name", [name for name in piston.runtime.__all__ if name.endswith("Error")])
def test_every_error_is_ours_and_a_builtin_besides(name):
    error = getattr(piston.runtime, name)
    assert issubclass(error, errors.Error)
    builtin = [base for base in error.__mro__ if base.__module__ == "builtins" and base.__name__.endswith("Error")]
    assert builtin or name == "Error"
