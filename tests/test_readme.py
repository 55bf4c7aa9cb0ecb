"""README is a promise: every command block in it runs, in order, in a clean folder, to its end.

The papers' recipes run as printed on small stand-ins: files in the exact layouts of the released ones with
small random networks, data trees of a few videos and images, and OVERRIDES, one table of flags that is
appended to a command that matches. What is not in README is not promised; what is in it runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stand_ins import stand_ins

# A command that contains the key gets the flags appended (all keys that match, in this order). Only sizes and
# counts may stand here, and what a small CPU does without (bf16, compiling): a flag that changes which road is
# taken would test another command than README's.
OVERRIDES = {
    "train.py": "--steps 2 --save_every 1 --log_every 1 --preview_every 2 --no-compile --no-bf16 --warmup 1",
    "--config small": "--items 16 --batch 2",
    "--config toy": "--items 16 --batch 2",
    "--config videodit": "--frames 4 --size 32 --batch 2 --accumulate 1 --disc_start 1 --disc_warmup 1 "
                         "--disc.width 8 --disc.layers 1 --long 0",
    "--config latte": "--frames 4 --size 32 --batch 2 --stride 1 --latte.depth 2 --latte.width 48 "
                      "--latte.heads 2 --latte.input_size 4 --latte.frames 4 --previews 1",
    "--config latte-ucf101-img": "--joint_images 1",
    "--config latte-t2v": "--latte.width 72 --latte.heads 1 --latte.context_dim 24 --joint_images 1",
    "sample.py": "--steps 2",
    "a panda taking a selfie": "--size 64",
    "--zero-shot-video": "--size 64",
}


def blocks(text):
    """The command blocks of a Markdown file: every run of lines indented by four spaces, outside of fences."""
    found, block, fenced = [], [], False
    for line in [*text.splitlines(), "end"]:
        if line.startswith("```"):
            fenced = not fenced
        if line.startswith("    ") and not fenced:
            block.append(line[4:])
        elif block and line.strip():
            found.append("\n".join(block).rstrip())
            block = []
    return found


SHIM = r'''#!{python}
"""Stands in front of python and torchrun: the overrides are appended, then the real command runs."""
import json, os, shlex, sys
table, called = json.load(open({table!r})), os.path.basename(sys.argv[0])
words = sys.argv[1:]
if called == "pip":
    sys.exit(0)                                            # installed already
if called == "torchrun":                                   # one process takes the same path (test_trainer.py: 2)
    while words and not words[0].endswith(".py"):
        words.pop(0)
line = " ".join(words)
script = next((word for word in words if word.endswith(".py")), "")
if script and not (script == "train.py" and (len(words) == 1 or words[1] in ("report", "--help"))):
    for key, flags in table.items():
        if key in line:
            words += shlex.split(flags)
if words[:2] == ["-m", "pytest"]:
    sys.exit(0)                                            # we are inside it
with open({log!r}, "a") as file:
    file.write(" ".join([called, *words]) + "\n")
os.execv({python!r}, [{python!r}, *words])
'''


def shims(folder, log):
    """A folder for PATH whose python, torchrun and pip append the overrides."""
    folder.mkdir()
    table = folder / "overrides.json"
    table.write_text(json.dumps(OVERRIDES))
    for name in ("python", "torchrun", "pip"):
        (folder / name).write_text(SHIM.format(python=sys.executable, table=str(table), log=str(log)))
        (folder / name).chmod(0o755)
    return folder


def clean_copy(folder):
    """What a clone would hold: the tracked files, and those that are about to be."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True,
                           check=True).stdout.splitlines()
    for name in names:
        if Path(name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, folder / name)
    return folder


def test_every_override_serves_a_command_of_the_readme():
    commands = "\n".join(blocks(Path("README.md").read_text("utf-8")))
    assert [key for key in OVERRIDES if key not in commands] == []


def test_a_comment_above_a_command_harms_nobody_who_pastes_it_into_zsh():
    """There a # that is typed begins no comment: its line is a command, and a quote or an operator in it would
    take the next lines with it."""
    for file in (Path("README.md"), *Path("docs").glob("*.md")):
        commands = re.sub(r"<<'END'\n.*?^END$", "", "\n".join(blocks(file.read_text("utf-8"))), flags=re.M | re.S)
        for line in commands.splitlines():
            assert not re.search(r"^\s*#.*['\"`;&|<>()*?$!\[\]]|\S\s+# ", line), f"{file}: {line}"


@pytest.mark.slow
@pytest.mark.parametrize("shell", ("bash", "zsh"))
def test_every_command_of_the_readme_runs_in_order_in_a_clean_folder(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    work, log = clean_copy(tmp_path / "clone"), tmp_path / "commands.log"
    stand_ins(work)                                         # weights/, CLIPS, IMAGES, ...: README's names
    bin_folder = shims(tmp_path / "bin", log)
    lines = ["set -e"]
    for number, block in enumerate(blocks(Path("README.md").read_text("utf-8"))):
        lines += [f"echo '== block {number}'", block]
    (tmp_path / "readme.sh").write_text("\n".join(lines) + "\n")
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    env.pop("GOLDEN_DIR", None)
    done = subprocess.run([shell, str(tmp_path / "readme.sh")], cwd=work, env=env, capture_output=True,
                          text=True, errors="replace")
    told = log.read_text().splitlines()[-1] if log.exists() else "nothing"
    assert done.returncode == 0, f"after: {told}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    wanted = re.findall(r"\b(?:python|torchrun)\b[^\n]*?(\w+\.py)", "\n".join(lines))
    assert set(wanted) <= set(re.findall(r"(\w+\.py)", log.read_text()))
