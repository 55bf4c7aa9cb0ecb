"""Two rings: lessons import support and each other, support imports support alone, and nothing runs in a circle."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("", "support", "demos") for path in sorted((ROOT / folder).glob("*.py"))]


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


OURS = {name_of(path) for path in FILES}


def under_main(tree):
    """What stands under `if __name__ == "__main__"`."""
    return [inside for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
            for inside in ast.walk(node)]


def imports(path):
    """Our files that a file imports, at its top or in a function; not what its __main__ alone imports."""
    tree = ast.parse(path.read_text("utf-8"))
    left_out = {id(node) for node in under_main(tree)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & (OURS - {"support", "demos"})


GRAPH = {name_of(path): imports(path) for path in FILES}


def test_support_imports_support_alone():
    for name, others in GRAPH.items():
        if name.startswith("support"):
            assert all(other.startswith("support") for other in others), (name, others)


def test_a_demo_is_imported_by_no_lesson():
    """Only under __main__, by the lesson it belongs to; demos may share drawings."""
    for name, others in GRAPH.items():
        if not name.startswith("demos"):
            assert not any(other.startswith("demos") for other in others), (name, others)


def test_there_is_no_circle():
    """Files whose imports are all taken away are taken away themselves, until none is left."""
    left = {name: set(others) for name, others in GRAPH.items()}
    while True:
        done = {name for name, others in left.items() if not others & left.keys()}
        if not done:
            break
        left = {name: others for name, others in left.items() if name not in done}
    assert not left, f"these import each other in a circle: {sorted(left)}"
