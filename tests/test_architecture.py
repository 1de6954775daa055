"""The house keeps its floors: who may import whom, file sizes, docstrings; read from the syntax alone."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, EXPERIMENTS = "attn_jax", "experiments"

# From the ground up. A room imports from floors below it; rooms of one floor do not import each other.
FLOORS = (
    {"functional"},
    {"nn"},
    {"models", "storage", "search_config"},
    {"data", "training", "decoding", "metrics", "convert", "viz"},
    {"translation", "aligner", "pretrained"},
    {"loading"},
    {"hub", "progress", "doctor"},
    {"run_config"},
    {"run", "pictures"},
    {"demo", "serve"},
    {"verbs"},
    {"cli"},
    {"", "__main__"},  # the package itself, which names everything that is public
)
GROUND_MAY_IMPORT = {"jax", "jaxtyping", "numpy"}  # and the standard library
LAZY = {"orbax", "torch"}  # slow to import, or not always installed: only inside the functions that need them
MAX_LINES = 420


def room_of(module):
    """The room of a module: ``attn_jax.nn.attention`` -> ``nn``, ``attn_jax`` -> the empty name."""
    return [*module.split("."), ""][1]


def floor_of(room):
    """The number of the floor a room is on, or None for a room that FLOORS does not know."""
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def imports(tree, module, is_package=False):
    """All imports of a file, in whatever scope: (line, absolute module, imported name or None, inside a function)."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None, id(node) in lazy
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, source, alias.name, id(node) in lazy


def target_room(source, name):
    """The room an import reaches into; ``from attn_jax import nn`` reaches into ``nn``."""
    return name if source == LIBRARY and name and floor_of(name) is not None else room_of(source)


def library_violations(tree, module, is_package=False):
    """What the imports of one file of the library break of the import rule."""
    own, found = room_of(module), []
    if floor_of(own) is None:
        return [f"{module}: room {own!r} is on no floor; give it one in FLOORS"]
    for line, source, name, lazy in imports(tree, module, is_package):
        top = source.split(".")[0]
        if top == LIBRARY:
            room = target_room(source, name)
            if room != own and not (floor_of(room) is not None and floor_of(room) < floor_of(own)):
                found.append(f"{module}:{line}: {own or LIBRARY} may not import {room or LIBRARY}")
        elif top in {EXPERIMENTS, "tests"}:
            found.append(f"{module}:{line}: the library may not import {top}")
        elif own == "functional" and top not in GROUND_MAY_IMPORT | sys.stdlib_module_names:
            found.append(f"{module}:{line}: the ground floor may not import {top}")
        elif top in LAZY and not lazy:
            found.append(f"{module}:{line}: import {top} inside the function that needs it")
    return found


def experiment_violations(tree, module):
    """An experiment imports what is public in the library, the shared runner and itself, and no other experiment."""
    own, found = module.split(".")[:2], []
    for line, source, name, _ in imports(tree, module):
        parts = [*source.split("."), *([name] if name else [])]
        if parts[0] == EXPERIMENTS and parts[:2] not in ([EXPERIMENTS, "runner"], own):
            found.append(f"{module}:{line}: an experiment may not import {'.'.join(parts)}")
        hidden = any(part.startswith("_") and not part.endswith("__") for part in parts)
        if parts[0] == "tests" or (parts[0] == LIBRARY and hidden):
            found.append(f"{module}:{line}: an experiment may not import {'.'.join(parts)}, which is not public")
    return found


def undocumented(tree):
    """Public functions and classes at the top of a file without a docstring; ruff looks at their methods."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{node.lineno}: {node.name}"


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files(LIBRARY), ids=name_of)
def test_library_file(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not library_violations(tree, module_name(path), path.name == "__init__.py")
    assert not list(undocumented(tree))
    assert not text or ast.get_docstring(tree), "a file starts with a docstring"


@pytest.mark.parametrize("path", files(EXPERIMENTS), ids=name_of)
def test_experiment_file(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not experiment_violations(tree, module_name(path))
    assert not list(undocumented(tree))


@pytest.mark.parametrize("path", [*files(LIBRARY), *files(EXPERIMENTS), *files("tests")], ids=name_of)
def test_no_file_is_too_long(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: which room is missing?"


# The rules themselves.


@pytest.mark.parametrize(
    ("module", "code", "message"),
    [
        ("attn_jax.functional.scores", "import flax.linen as nn", ":1: the ground floor may not import flax"),
        ("attn_jax.functional.scores", "def f():\n    import optax", ":2: the ground floor may not import optax"),
        ("attn_jax.functional.scores", "from attn_jax.nn import attention", "functional may not import nn"),
        ("attn_jax.functional.scores", "from ..nn.attention import X", "functional may not import nn"),
        ("attn_jax.functional.scores", "from .. import nn", "functional may not import nn"),
        ("attn_jax.nn.attention", "from attn_jax import models", "nn may not import models"),
        ("attn_jax.nn.attention", "import attn_jax.models.protocol", "nn may not import models"),
        ("attn_jax.nn.attention", "from attn_jax import Translator", "nn may not import attn_jax"),
        ("attn_jax.models.seq2seq", "from attn_jax.storage import files", "models may not import storage"),
        ("attn_jax.training.loop", "from attn_jax.data.batching import X", "training may not import data"),
        ("attn_jax.decoding.beam", "def f():\n    from attn_jax.hub import X", ":2: decoding may not import hub"),
        ("attn_jax.data.x", "from attn_jax.cellar import X", "data may not import cellar"),
        ("attn_jax.hub", "from attn_jax.cli import main", "hub may not import cli"),
        ("attn_jax.hub", "from experiments.runner import X", "the library may not import experiments"),
        ("attn_jax.training.checkpoints", "import orbax.checkpoint", "import orbax inside the function"),
        ("attn_jax.cellar.wine", "import jax", "room 'cellar' is on no floor"),
    ],
)
def test_a_broken_rule_is_seen(module, code, message):
    (found,) = library_violations(ast.parse(code), module)
    assert message in found


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("attn_jax.functional.scores", "import math, functools\nimport jax.numpy as jnp\nimport numpy as np"),
        (
            "attn_jax.functional.attention",
            "from attn_jax.functional.scores import X\nfrom . import masks\nfrom .masks import y",
        ),
        ("attn_jax.nn.attention", "import chex\nfrom flax import linen\nfrom attn_jax import functional"),
        ("attn_jax.training.step", "from attn_jax.models.protocol import Batch\nfrom attn_jax.storage import files"),
        ("attn_jax.training.checkpoints", "def f():\n    import orbax.checkpoint"),
        ("attn_jax.cli", "from attn_jax import hub\nfrom attn_jax.decoding.beam import X"),
        ("attn_jax", "from attn_jax.hub import Translator\nfrom attn_jax.cli import main"),
    ],
)
def test_a_kept_rule_is_not_complained_about(module, code):
    assert library_violations(ast.parse(code), module) == []


def test_relative_imports_of_a_package():
    code = "from .scores import X\nfrom ..nn import Y"
    assert library_violations(ast.parse(code), "attn_jax.functional", is_package=True) == [
        "attn_jax.functional:2: functional may not import nn"
    ]


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        (
            "import attn_jax as aj\nfrom attn_jax.viz import heatmap\nfrom experiments.runner import run\nimport numpy",
            0,
        ),
        ("from experiments import runner", 0),
        ("from experiments.demo import run", 1),
        ("from experiments import demo", 1),
        ("from .demo import run", 1),
        ("from attn_jax.nn.attention import _hidden", 1),
        ("import attn_jax._hidden.x", 1),
        ("from tests import conftest", 1),
    ],
)
def test_what_experiments_import(code, bad):
    assert len(experiment_violations(ast.parse(code), "experiments.other")) == bad


def test_the_files_of_one_experiment_import_each_other():
    code = ast.parse(
        "from experiments.speed.measure import X\nfrom experiments.speed import work\nfrom experiments import nmt"
    )
    found = ["experiments.speed.layer:3: an experiment may not import experiments.nmt"]
    assert experiment_violations(code, "experiments.speed.layer") == found


def test_missing_docstrings_are_seen():
    code = "def f(): pass\ndef _g(): pass\nclass C:\n    def m(self): pass\n    def _n(self): pass\nclass D:\n    'd'\n"
    assert list(undocumented(ast.parse(code))) == ["1: f", "3: C"]
