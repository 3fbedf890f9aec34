"""The arrows between modules: each imports only what stands above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ressl_tf"
ORDER = (
    "version",
    "losses",
    "accumulation",
    "schedules",
    "keras_compat",
    "distribute",
    "cluster",
    "key_queue",
    "batch_norm",
    "networks",
    "optimizers",
    "augment",
    "data",
    "model",
    "recipe",
    "workdir",
    "environment",
    "export",
    "embedding",
    "interop",
    "evaluation",
    "search",
    "monitor",
    "train",
    "scaling",
    "benchmark",
)
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name):
    """Place in ORDER of `ressl_tf.losses.normalize` and the like, or None."""
    parts = name.split(".")
    if parts[0] != "ressl_tf" or len(parts) < 2:
        return None
    return parts[1]


def test_every_module_has_its_place():
    found = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert found | FOLDERS == set(ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_go_up_the_list(path):
    relative = path.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    if name == "__init__":
        return
    for imported in imports(path):
        root = imported.split(".")[0]
        assert root not in ("configs", "tools", "ml_collections"), imported
        assert not imported.startswith("absl.flags"), imported
        assert root not in ("keras", "tf_keras"), f"{imported}: use tf.keras"
        if root == "keras_cv":
            # The benchmark's opponents are the others' layers as they are.
            allowed = name == "augment" or path.stem == "opponents"
            assert allowed, imported
        above = module_of(imported)
        if above is not None and above != name:
            assert ORDER.index(above) < ORDER.index(name), imported


@pytest.mark.core
def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, ressl_tf;"
        "heavy = 'keras_cv', 'tensorflow_datasets', 'ml_collections',"
        "    'tensorflow_addons';"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
