"""What docs/ says of the code is true: targets exist, no number of either paper is missing, lists are new."""

import ast
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from differs import marks


# what the papers number, read off their pages
PAPERS = {
    "VideoDiT": {"Eq.": range(1, 6), "Fig.": range(1, 15), "Table": range(1, 7),
                 "Section": "1 2 2.1 2.2 3 3.1 3.2 4 4.1 4.2 4.3 5 6 A A.1 A.2 B".split()},
    "Latte": {"Eq.": range(1, 2), "Fig.": range(1, 11), "Table": range(1, 6),
              "Section": ("1 2 3 3.1 3.2 3.3 3.3.1 3.3.2 3.3.3 3.3.4 4 4.1 4.2 4.3 4.4 4.5 5 "
                          "A A.1 A.2 A.3").split()},
}
MAP = Path("docs/map.md")


@cache
def names_in(file):
    """All that a reader can search a file for: functions, classes, Class.method, Class.field, NAMES."""
    found = set()
    for node in ast.parse(Path(file).read_text("utf-8")).body:
        found |= {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        for part in node.body if isinstance(node, ast.ClassDef) else []:
            own = part.name if isinstance(part, ast.FunctionDef) else getattr(
                getattr(part, "target", None), "id", "")
            found.add(f"{node.name}.{own}")
    return found


def rows(text, paper):
    """[(its first cell, its last)] of the table under this paper's headline."""
    part = re.search(rf"^## {paper}\n(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)
    cells = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in part.splitlines() if line[:2] == "| "]
    return [(row[0], row[-1]) for row in cells[1:]]


def targets(cell):
    """[(file, name)]: `vae.py` `DPVAE`, `GOP` is two names of vae.py; a file alone is (file, "")."""
    file, found = None, []
    for word in re.findall(r"`([^`]+)`", cell):
        if word.endswith((".py", ".gif", ".svg", ".png", ".txt")):
            file = word
            found.append((file, ""))
        else:
            found.append((file, word))
    return found


def is_there(file, name):
    """A name of the file's, or a flag that it reads."""
    if not Path(file).is_file():
        return False
    if name.startswith("--"):
        return f'"{name.split()[0]}"' in Path(file).read_text("utf-8")
    return not name or name in names_in(file)


def labels(first_cells, kind):
    """The numbers that rows of one kind name, "Section 2, 2.1, 2.2" being three."""
    numbers = re.compile(r"(?<![\w.])(?:[AB](?:\.\d)?|\d+(?:\.\d)*)(?!\w)")
    return {number for cell in first_cells if cell.startswith(kind) for number in numbers.findall(cell)}


@pytest.mark.parametrize("paper", PAPERS)
def test_no_equation_table_figure_or_section_is_missing(paper):
    first_cells = [first for first, _ in rows(MAP.read_text("utf-8"), paper)]
    for kind, wanted in PAPERS[paper].items():
        missing = set(map(str, wanted)) - labels(first_cells, kind)
        assert not missing, f"{paper} {kind} {sorted(missing)}"


@pytest.mark.parametrize("paper", PAPERS)
def test_every_target_of_the_map_exists(paper):
    wrong = [(first, file, name) for first, last in rows(MAP.read_text("utf-8"), paper)
             for file, name in targets(last) if not is_there(file, name)]
    assert wrong == []


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_of_the_map_leads_somewhere_or_says_why_not(paper):
    for first, last in rows(MAP.read_text("utf-8"), paper):
        assert targets(last) or "not here, because" in last or last == "the rows below", first


# ------------------------------------------------------------------------------------------- what differs

def test_the_list_of_what_differs_is_the_marks_of_the_code():
    """After a new mark: python tests/differs.py > docs/differs.md"""
    assert Path("docs/differs.md").read_text("utf-8") == marks(".") + "\n"


def test_a_mark_is_found_with_its_sentences(tmp_path):
    """In a docstring, above what it is about, inside of it, beside code; a word about marks is none."""
    (tmp_path / "a.py").write_text('"""grep ASSUMED: no."""\n# ASSUMED: above\n# it.\nX = 1\n\nclass A:\n'
                                   '    # DEVIATES Eq. 2: the next.\n    def b(self):\n'
                                   '        """c. ASSUMED: in\n        a text."""\n'
                                   '        d = 1    # ASSUMED: beside\n        e = 2\n')
    assert marks(tmp_path).splitlines()[-4:] == [
        "* ASSUMED: above it.", "* DEVIATES Eq. 2: the next.", "* ASSUMED: in a text.", "* ASSUMED: beside"]


# ---------------------------------------------------------------------------------------------- exercises

def sections():
    """{number of an exercise: (what is said before its check, the Python of the check)}"""
    parts = re.split(r"^## (\d+)\. ", Path("docs/exercises.md").read_text("utf-8"), flags=re.M)
    found = (re.search(r"(.*?)^    python - <<'END'\n(.*?)^    END$", part, re.M | re.S) for part in parts[2::2])
    return {int(n): match.groups() for n, match in zip(parts[1::2], found)}


def tasks():
    return {number: text for number, (text, _) in sections().items()}


def checks():
    """{number of an exercise: the Python of its check}"""
    return {number: re.sub(r"^    ", "", script, flags=re.M) for number, (_, script) in sections().items()}


def test_there_are_eleven_exercises_each_with_a_check_that_is_python():
    assert sorted(checks()) == list(range(1, 12))
    for script in checks().values():
        compile(script, "docs/exercises.md", "exec")
        assert "assert" in script


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 12))
def test_the_check_of_an_exercise_fails_before_it_is_done(number):
    """Otherwise it would tell nothing. And it fails by what is to be written, not by what is gone."""
    done = subprocess.run([sys.executable, "-c", checks()[number]], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    if missing := re.search(r"cannot import name '(\w+)'", said):
        assert missing[1] in tasks()[number]
    assert done.returncode == 1 and said.startswith(("AssertionError", "ImportError", "KeyError", "UserError",
                                                     "support.cli.UserError")), said


# ------------------------------------------------------------------------------------------------ the tour

TOUR = Path("docs/tour.ipynb").resolve()


def run_tour(notebook):
    """Runs a notebook's code cells in one namespace, as Jupyter would; their outputs: print, then the last
    expression, an image as its .png. To store them anew: PYTHONPATH=. python tests/test_docs.py FOLDER"""
    names, all_outputs = {}, []
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        *body, last = ast.parse("".join(cell["source"])).body
        printed, outputs = io.StringIO(), []
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
            else:
                value = exec(compile(ast.Module([last], []), f"cell {number}", "exec"), names)
        if printed.getvalue():
            outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)})
        if value is not None:
            png = base64.b64encode(value._repr_png_()).decode()
            outputs.append({"output_type": "execute_result", "execution_count": number + 1, "metadata": {},
                            "data": {"image/png": png, "text/plain": [f"<{value.width} x {value.height} image>"]}})
        all_outputs.append(outputs)
    return all_outputs


@pytest.mark.slow
def test_the_tours_cells_run_in_order_and_print_and_draw_what_is_stored(tmp_path, monkeypatch):
    """Sizes of images, and all lines but for their numbers: seconds differ, and the last digits."""
    notebook = json.loads(TOUR.read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    for cell, outputs in zip((c for c in notebook["cells"] if c["cell_type"] == "code"), run_tour(notebook)):
        for stored, new in zip(cell["outputs"], outputs, strict=True):
            if "text" in stored:
                said, before = (re.sub(r"-?\d[\d.,]*(e[+-]\d+)?", "#", "".join(output["text"]))
                                for output in (new, stored))
                assert said == before
            else:
                assert new["data"]["text/plain"] == stored["data"]["text/plain"]


# --------------------------------------------------------------------------------------------------- README

def test_readmes_table_names_every_lesson():
    """The files at the top, no other and none forgotten."""
    text = Path("README.md").read_text("utf-8")
    table = re.search(r"^\| open \| for \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)[1]
    named = {name for line in table.splitlines() for name in re.findall(r"\w+\.py", line.split("|")[1])}
    assert named == {path.name for path in Path(".").glob("*.py")}


if __name__ == "__main__":
    tour = json.loads(TOUR.read_text("utf-8"))
    os.chdir(sys.argv[1])                                   # a folder for what the cells write
    cells = [cell for cell in tour["cells"] if cell["cell_type"] == "code"]
    for count, (cell, outputs) in enumerate(zip(cells, run_tour(tour)), 1):
        cell.update(execution_count=count, outputs=outputs)
    TOUR.write_text(json.dumps(tour, indent=1, ensure_ascii=False) + "\n", "utf-8")
