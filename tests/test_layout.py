"""The rooms: who imports whom, how long a file and a function may be, what stands where."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

NETWORKS = "vae text dit videodit latte features"
# In reading order, the ground first: everybody may import checkpoint.py.
MAY_IMPORT = {
    "checkpoint": "",
    "world": "",
    "video": "",
    "folder": "video",
    "data": "world video folder",
    "flow": "",
    "vae": "",
    "tokenizer": "",
    "text": "tokenizer",
    "dit": "",
    "videodit": "dit",
    "latte": "dit",
    "features": "",
    "published": f"{NETWORKS} tokenizer",
    "metrics": "",
    "protocol": "world video folder data features metrics",
    "sample": f"{NETWORKS} published flow folder data video",
    "presets": f"{NETWORKS} world",
    "loop": "presets",
    "train": f"{NETWORKS} published tokenizer flow folder data video world sample presets loop",
    "eval": "world video data vae latte features published metrics protocol sample",
    "ablate": "presets published",
    "bench": f"{NETWORKS} flow data presets loop train",
}
# what a demo may take beside: pictures to look at, a toy to show, and that toy as latents and tokens
DRAWS = {"video", "world", "vae", "text"}
ORDER = list(MAY_IMPORT)
FILES = sorted(path.name for path in [*Path().glob("*.py"), *Path("tests").glob("*.py")])


def source(name):
    return (Path(name) if Path(name).exists() else Path("tests") / name).read_text("utf-8")


def ours(nodes):
    """Our files that these import statements name."""
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return named & set(ORDER)


def imports(name):
    """(at the top of the file, inside a function)"""
    tree = ast.parse(source(f"{name}.py"))
    return ours(tree.body), ours(ast.walk(tree)) - ours(tree.body)


def code_lines(text):
    """The numbers of the lines that hold code: no blank ones, no comments, no docstrings."""
    code, empty = set(), (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
                          tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            code -= set(range(node.lineno, node.end_lineno + 1))
    return code


# ------------------------------------------------------------ who imports whom

def test_every_file_has_its_place_in_the_drawing():
    """No room that nobody drew: no utils.py, and no file that the table forgot."""
    assert sorted(path.stem for path in Path().glob("*.py")) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_what_is_drawn(name):
    """At its top what the table says; inside a function, a demo's drawing, films or the toy world."""
    top, inside = imports(name)
    assert top <= {"checkpoint", *MAY_IMPORT[name].split()}
    assert inside <= DRAWS | {"checkpoint", *MAY_IMPORT[name].split()}


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_none_but_those_read_before_it(name):
    """Then there is no circle, whichever way one walks."""
    top, inside = imports(name)
    assert all(ORDER.index(other) < ORDER.index(name) for other in top | inside)


# ------------------------------------------------------------ how long

@pytest.mark.parametrize("name", FILES)
def test_a_file_is_no_longer_than_a_lesson(name):
    """650 lines of code, 60 in a function, 110 letters in a line."""
    text = source(name)
    code = code_lines(text)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = [node.name for node in functions if len(code & set(range(node.lineno, node.end_lineno + 1))) > 60]
    wide = [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 110]
    assert len(code) <= 650 and long == [] and wide == []


def test_what_counts_as_code():
    """Known answer: of these nine lines four are code."""
    text = ['"""One.', 'Two."""', "", "x = 1   # three", "# four", "def f():", '    """Five."""',
            '    return ("a"', '            "b")']
    assert code_lines("\n".join(text) + "\n") == {4, 6, 8, 9}


# ------------------------------------------------------------ what the files say of themselves

def test_readmes_reading_order_is_the_drawing():
    """Its table lists the files in the order in which they stand on each other, the ground last."""
    order = re.findall(r"^\| (\w+)\.py \|", Path("README.md").read_text("utf-8"), re.M)
    assert order == ORDER[1:] + ORDER[:1]


@pytest.mark.parametrize("name", ORDER)
def test_a_files_own_words_agree_with_the_order(name):
    """The line "Reads" of its docstring: what it is read after stands before it, and the other way round."""
    line = re.search(r"^Reads +(.*)", ast.get_docstring(ast.parse(source(f"{name}.py"))), re.M).group(1)
    for word, files in re.findall(r"(after|before) ((?:\w+\.py(?:,? and |, )?)+)", line):
        for other in re.findall(r"(\w+)\.py", files):
            assert (ORDER.index(other) < ORDER.index(name)) == (word == "after"), line


@pytest.mark.parametrize("name", ORDER)
def test_every_file_has_its_tests(name):
    """test_X.py mirrors X.py."""
    assert Path("tests", f"test_{name}.py").is_file()
