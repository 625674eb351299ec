"""What is known in one place only: the keys of meta.json, and what a family of models is."""

import ast

import pytest

from tests.test_architecture import MODULES, source_of
from traceformer.models.families import FAMILIES

META = "store.meta"
"""The one module that reads `meta.json` by its keys: the others read `RunMeta`'s attributes."""


def keys_of_meta(source: str) -> list[str]:
    """Returns where a module takes `meta["key"]` or `meta.get("key")` of a name or an attribute `meta`."""

    def is_meta(node: ast.AST) -> bool:
        return getattr(node, "id", None) == "meta" or getattr(node, "attr", None) == "meta"

    def key(node: ast.AST) -> ast.AST | None:
        if isinstance(node, ast.Subscript) and is_meta(node.value):
            return node.slice
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_meta(node.func.value):
            return next(iter(node.args), None)
        return None

    keys = [(node, key(node)) for node in ast.walk(ast.parse(source))]
    texts = [node for node, of in keys if isinstance(of, ast.Constant) and isinstance(of.value, str)]
    return [f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}" for node in texts]


@pytest.mark.parametrize("module", [module for module in MODULES if module != META])
def test_meta_json_is_read_by_its_keys_in_one_module(module: str) -> None:
    assert keys_of_meta(source_of(module)) == []


@pytest.mark.parametrize(
    "source",
    [
        "meta['dims']",
        "run.meta['dims']['enc']",
        "self._store.meta.get('model')",
        "name = meta.get('model', '')",
        "meta['dims'] = {}",
        "meta.pop('run_id')",
        "(meta.get('attention') or {}).get('sinks')",
    ],
)
def test_a_key_of_meta_json_is_found(source: str) -> None:
    assert len(keys_of_meta(source)) == 1


@pytest.mark.parametrize(
    "source", ["run.about.model", "{name: run.meta[name] for name in names}", "stated['model']", "checkpoint.meta"]
)
def test_what_reads_no_key_of_meta_json_is_left_alone(source: str) -> None:
    assert keys_of_meta(source) == []


# Model types that are names of systems as well, whose files and conventions are called after them.
NAMES_OF_SYSTEMS = frozenset(("nanochat",))


OWN_MODEL_TYPES = {"bytelm": frozenset(("byte_sparse",))}
"""What registers a class of its own with transformers says under what name."""


def families_named(module: str, source: str) -> list[str]:
    """Returns the strings of a module that are model types, with their lines: such facts belong in a family's row."""
    part = module.split(".")[0]
    allowed = frozenset(FAMILIES) if part == "models" else NAMES_OF_SYSTEMS | OWN_MODEL_TYPES.get(part, frozenset())
    return [
        f"line {node.lineno}: {module} names the family {node.value!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value in FAMILIES.keys() - allowed
    ]


@pytest.mark.parametrize("module", MODULES)
def test_no_module_outside_models_names_a_family(module: str) -> None:
    assert families_named(module, source_of(module)) == [], "ask the row: traceformer/models/table"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("capture.provenance", 'sinks = config.model_type == "gpt_oss"'),
        ("formats.hook_names", '_SCALED = frozenset(("gemma",))'),
        ("cli.check", 'def f(name):\n    match name:\n        case "xlm-roberta":\n            return 1'),
        ("viewer.labels", 'KINDS = {"byte_sparse": "sparse"}'),
        ("bytelm.model", 'like = "llama"'),
    ],
)
def test_a_family_that_is_named_is_found(module: str, source: str) -> None:
    assert len(families_named(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models.families", 'FAMILIES = {"gpt2": 1}'),
        ("bytelm.model", '_NAME = "byte_sparse"'),
        ("cli.import_", 'FORMATS = ("nanochat", "pt")'),
        ("cli.check", 'hint = "a Hub name such as gpt2"'),
    ],
)
def test_other_strings_are_left_alone(module: str, source: str) -> None:
    assert families_named(module, source) == []
