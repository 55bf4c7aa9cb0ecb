"""differs.py - docs/differs.md, made of the marks in the code (grep ASSUMED, DEVIATES).

Where a paper is silent the code says ASSUMED, where we depart from it DEVIATES, each at the line that does
it: a list of its own would be wrong after a week. The page for readers is made from these marks, names no
line numbers, and a test compares the two:  python tests/differs.py > docs/differs.md"""

import re
from pathlib import Path


MARK = re.compile(r"\b(ASSUMED|DEVIATES)\b([^:]{0,60}): (.*)")
DIFFERS = """# What differs from the papers

Made by `python tests/differs.py > docs/differs.md` from the marks in the code, file by file, in their
order there. ASSUMED is where a paper is silent, DEVIATES where it or its published code says otherwise; the
reasons are longer in the code."""


def marks(folder):
    """docs/differs.md as text: every mark of the folder's files."""
    page = [DIFFERS]
    for path in [*sorted(Path(folder).glob("*.py")), *sorted(Path(folder).glob("support/*.py"))]:
        lines = path.read_text("utf-8").splitlines()
        rows = []
        for number, line in enumerate(lines):
            mark = MARK.search(line)
            if mark and "grep" not in line:
                rows.append(f"* {mark[1]}{mark[2]}: {paragraph(lines, number, mark[3])}")
        if rows:
            page += ["", f"## {path.relative_to(folder)}", "", *rows]
    return "\n".join(page)


def paragraph(lines, number, text):
    """A mark's text and the lines on which it goes on, to the end of a sentence beyond 160 letters."""
    in_comment = "#" in lines[number]
    for line in lines[number + 1:]:
        more = line.strip()
        ends = more in ("", "#") or MARK.search(line) or in_comment != more.startswith("#")
        if ends or text.endswith('"""'):
            break
        text += " " + more.removeprefix("# ")
    said = ""
    for sentence in re.split(r"(?<=[.;]) (?=[A-Z(])", text.removesuffix('"""')):
        if len(said) < 160:
            said += " " + sentence
    return said.strip()


if __name__ == "__main__":
    print(marks(Path(__file__).parents[1]))
