"""marks.py - ASSUMED and DEVIATES in the code -> docs/differs.md:  python -m support.marks > docs/differs.md"""

import re
from pathlib import Path


# ---------------------------------------------------------------------------------- what differs, as a page

# Where a paper is silent the code says ASSUMED, where we depart from it DEVIATES, each at the line that does
# it: a list of its own would be wrong after a week. The page for readers is made from these marks, names no
# line numbers, and a test compares the two.

MARK = re.compile(r"\b(ASSUMED|DEVIATES)\b([^:]{0,60}): (.*)")
OWNER = re.compile(r"\s*(?:class|def) (\w+)|(\w+)(?:, \w+)* = ")
DIFFERS = """# What differs from the papers

Made by `python -m support.marks > docs/differs.md` from the marks in the code, each under the file and the
name that it belongs to. ASSUMED is where a paper is silent, DEVIATES where it or its published code says
otherwise; the reasons are longer in the code."""


def marks(folder):
    """docs/differs.md as text: every mark of the folder's files, under what it belongs to."""
    page = [DIFFERS]
    for path in [*sorted(Path(folder).glob("*.py")), *sorted(Path(folder).glob("support/*.py"))]:
        lines = path.read_text("utf-8").splitlines()
        found = [(n, MARK.search(line)) for n, line in enumerate(lines) if "grep" not in line]
        rows = [f"* {owner_of(lines, n)}{mark[1]}{mark[2]}: {paragraph(lines, n, mark[3])}"
                for n, mark in found if mark]
        page += ["", f"## {path.relative_to(folder)}", "", *rows] if rows else []
    return "\n".join(page)


def owner_of(lines, number):
    """What a mark belongs to, "`Class.method` ": what begins right below it, else what it stands in."""
    depth = lambda line: len(line) - len(line.lstrip())
    code = next((line for line in lines[number:] if line.strip() and line.lstrip()[0] not in "#@"), "")
    here = depth(lines[number])
    found = [OWNER.match(code)] if depth(code) == here and OWNER.match(code) else []
    for line in lines[number::-1]:
        if depth(line) < here and OWNER.match(line):
            found, here = [OWNER.match(line), *found], depth(line)
    return f"`{'.'.join(match[1] or match[2] for match in found)}` " if found else ""


def paragraph(lines, number, text):
    """A mark's text and the lines on which it goes on, to the end of a sentence beyond 160 letters."""
    comment = "#" in lines[number]
    for line in lines[number + 1:]:
        more = line.strip()
        ends = more in ("", "#") or MARK.search(line) or comment != more.startswith("#")
        if ends or text.endswith('"""'):
            break
        text += " " + more.removeprefix("# ")
    said = ""
    for sentence in re.split(r"(?<=[.;]) (?=[A-Z(])", text.removesuffix('"""')):
        said += " " + sentence if len(said) < 160 else ""
    return said.strip()


if __name__ == "__main__":
    print(marks(Path(__file__).parents[1]))
