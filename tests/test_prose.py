"""How much of each file is for the reader: prose, shapes, lengths, a file a line, beside six codebases that
are held up as examples. `python tests/test_prose.py` prints the table; the tests hold the floor."""

import ast
import re
import statistics
import tokenize
from pathlib import Path

import pytest

LESSONS = ("world video folder data flow vae tokenizer text dit videodit latte features published metrics "
           "protocol sample presets loop train eval ablate bench checkpoint").split()
FLOOR = 28                                                 # per cent of a lesson's lines that are prose
SHAPED = 70                                                # per cent of the lines that change a shape
# measured from their own files: prose %; shape %; lines of a function, median / 90 % / longest
ANCHORS = {"nanoGPT": ("23", "17", "12 / 25 / 55"), "EDM2": ("23", "0", "6 / 35 / 185"),
           "Annotated S4": ("57", "0", "9 / 24 / 80"), "smalldiffusion": ("15", "31", "4 / 16 / 78"),
           "minbpe": ("36", "-", "10 / 30 / 42"), "CleanRL": ("17", "0", "7 / - / 16")}
CHANGES = ("rearrange repeat reduce view reshape transpose permute flatten unflatten cat stack chunk split "
           "expand unsqueeze squeeze movedim unbind pixel_shuffle swapaxes").split()


def comments(text):
    """{number of a line: the comment on it}"""
    tokens = tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def prose_lines(text):
    """The numbers of the lines that are nothing but a comment or a docstring."""
    lines = text.splitlines()
    found = {number for number in comments(text) if lines[number - 1].lstrip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found |= set(range(node.lineno, node.end_lineno + 1))
    return {number for number in found if lines[number - 1].strip()}


def prose_share(text):
    """Comments and docstrings, of all lines that are not blank, in per cent."""
    return 100 * len(prose_lines(text)) / sum(bool(line.strip()) for line in text.splitlines())


def changes_a_shape(node):
    """Whether this piece of a statement gives a tensor other axes: a call by name, or [:, None]."""
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return any(isinstance(part, ast.Constant) and part.value is None for part in parts)
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    texts = [part.value for part in node.args if isinstance(part, ast.Constant)]
    about_text = name in ("split", "flatten") and (not node.args or any(type(t) is str for t in texts))
    ours = ast.unparse(node.func).startswith("self.") and ast.unparse(node.func).count(".") == 1
    return name in CHANGES and not about_text and not ours and isinstance(node.func, ast.Attribute | ast.Name)


def shape_lines(text):
    """[(line, told)] of the statements that change a shape: told if one of their lines ends in a shape."""
    beside, found = comments(text), {}
    for node in ast.walk(ast.parse(text)):
        simple = isinstance(node, ast.Assign | ast.AugAssign | ast.Return | ast.AnnAssign)
        if simple and any(changes_a_shape(part) for part in ast.walk(node)):
            told = [beside.get(number, "") for number in range(node.lineno, node.end_lineno + 1)]
            found[node.lineno] = any(re.search(r"\([^()]*,[^()]*\)", comment) for comment in told)
    return sorted(found.items())


def function_lengths(text):
    """Lines of code in each function, longest last: without its docstring, comments and blank lines."""
    lines, prose = text.splitlines(), prose_lines(text)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return sorted(sum(bool(lines[number - 1].strip()) and number not in prose
                      for number in range(node.lineno, node.end_lineno + 1)) for node in functions)


def row(name):
    """(file, prose %, shape %, lengths) as text."""
    text = Path(f"{name}.py").read_text("utf-8")
    told, lengths = [told for _, told in shape_lines(text)], function_lengths(text)
    shapes = f"{100 * sum(told) / len(told):.0f} of {len(told)}" if told else "-"
    return (f"{name}.py", f"{prose_share(text):.0f}", shapes,
            f"{statistics.median(lengths):.0f} / {lengths[len(lengths) * 9 // 10]} / {lengths[-1]}")


def table():
    rows = [("", "prose %", "shapes %", "function: median / 90 % / longest"), *map(row, LESSONS),
            *((name, *numbers) for name, numbers in ANCHORS.items())]
    return "\n".join(f"{a:16s}{b:>8s}{c:>12s}   {d}" for a, b, c, d in rows)


# ------------------------------------------------------------------------------------------------ tests

def test_what_counts_as_prose():
    """Known answer: of these six lines that are not blank three are prose; a comment beside code is none."""
    assert prose_share('"""One.\n\nTwo."""\nx = 1  # beside\n# three\ny = """no\n# no"""\n') == 50


def test_what_counts_as_a_line_that_changes_a_shape():
    """Known answer: a reshape that tells, a [:, None] that does not; text that is split is no tensor, and a
    method of one's own says what it does where it is written."""
    text = ("a = b.reshape(2, 3)   # (B,N) rows\nc = d[:, None]\ne = f.split(',')\ng = h[1, 2]\n"
            "i = self.split(j)\n")
    assert shape_lines(text) == [(1, True), (2, False)]


def test_every_file_is_a_lesson():
    """No file at the top of the repository is forgotten by the table."""
    assert sorted(LESSONS) == sorted(path.stem for path in Path().glob("*.py"))


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_told_and_not_only_coded(name):
    share = prose_share(Path(f"{name}.py").read_text("utf-8"))
    assert share >= FLOOR, f"{name}.py is {share:.0f} % prose; a lesson here has {FLOOR} % at least"


def test_lines_that_change_a_shape_say_which():
    """A five-dimensional clip is folded so often that a reader who has to guess is lost."""
    told = [(name, number, told) for name in LESSONS
            for number, told in shape_lines(Path(f"{name}.py").read_text("utf-8"))]
    silent = [f"{name}.py:{number}" for name, number, said in told if not said]
    assert 100 * (1 - len(silent) / len(told)) >= SHAPED, silent


def test_functions_are_short():
    """Half of all functions have twelve lines of code at most."""
    lengths = [n for name in LESSONS for n in function_lengths(Path(f"{name}.py").read_text("utf-8"))]
    assert statistics.median(lengths) <= 12


if __name__ == "__main__":
    print(table())
