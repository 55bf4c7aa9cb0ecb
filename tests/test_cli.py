"""How a command ends: one line for a person, an exit code for a script."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import cli
from support.cli import UserError, check_writable, polite, printable

ROOT = Path(cli.__file__).parents[1]


def run(body, **settings):
    """A script whose main() is `body`: (exit code, its stderr)."""
    program = f"from support.cli import UserError, polite\ndef main():\n    {body}\npolite(main)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, **settings)
    return done.returncode, done.stderr.decode()


def ended(capsys, error):
    """What is left of an error that main() raises: (exit code, the lines on stderr)."""
    def main():
        raise error
    with pytest.raises(SystemExit) as stopped:
        polite(main)
    return stopped.value.code, capsys.readouterr().err.splitlines()


def test_ctrl_c_is_one_line_and_130(capsys):
    """As shells and schedulers expect of a program that SIGINT ended."""
    code, lines = ended(capsys, KeyboardInterrupt())
    assert code == 128 + signal.SIGINT and len(lines) == 1 and "Ctrl-C" in lines[0]


def test_too_small_a_memory_is_one_line(capsys):
    """A GPU's or a CPU's. torch's message of a page ends after its first line; the way out follows."""
    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 55)
    code, (line,) = ended(capsys, told.value)
    assert code == 2 and "can't allocate memory" in line and "--batch" in line
    code, (line,) = ended(capsys, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"))
    assert code == 2 and "Tried to allocate 9 GiB" in line and "--batch" in line
    with pytest.raises(RuntimeError):
        polite(lambda: torch.zeros(2) @ torch.zeros(3))


def test_an_output_that_nobody_reads_is_no_trace():
    """`| head -1` closes the pipe while more is printed."""
    read, write = os.pipe()
    os.close(read)
    code, error = run("print('x' * 100000)", stdout=write)
    assert code == 141 and error.count("\n") == 1 and "nobody reads" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_a_full_disk_behind_the_output_is_no_trace():
    with open("/dev/full", "w") as full:
        code, error = run("print('x')", stdout=full)
    assert code == 2 and error.count("\n") == 1 and "no space" in error


@pytest.mark.parametrize("shell", [">&-", "2>&-"])
def test_an_output_that_the_shell_has_closed_is_no_bug(shell):
    """Of a daemon, say: what is done is done, and nothing is told."""
    program = "import sys; from support.cli import polite\npolite(lambda: print(1, file=sys.stderr))"
    done = subprocess.run(["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", program], cwd=ROOT,
                          capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_a_terminal_of_ascii_shows_what_it_can():
    """A prompt of another script, and what was no UTF-8 on the command line."""
    code, error = run("print('\\u732b \\udcff')", env={**os.environ, "PYTHONIOENCODING": "ascii"},
                      stdout=subprocess.PIPE)
    assert (code, error) == (0, "")


def test_a_path_that_the_system_refuses_is_one_line(capsys):
    """Wherever it is looked at: Path.is_file() raises for a name of 300 letters, not only open()."""
    code, (line,) = ended(capsys, OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300))
    assert code == 2 and "x" * 300 + ": File name too long; give another path" in line


def test_escape_codes_are_shown_and_not_obeyed(capsys):
    """A file's name or a prompt may hold them: a terminal's colour, title or clipboard."""
    shown = printable("a \x1b[31mred\x07 K\u00e4tzchen \udcff\n")
    assert shown == "a \\x1b[31mred\\x07 K\u00e4tzchen \\udcff\n"
    code, (line,) = ended(capsys, UserError("no file \x1b]0;title\x07\n; check it"))
    assert code == 2 and "\x1b" not in line and "\\x1b]0;title\\x07\\n; check" in line


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path):
    """A file on the way, a name of 300 letters, a link to nothing; what can be written is left as it was."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "file/out", "x" * 300, "link"):
        with pytest.raises(UserError, match="--out .*: cannot be written"):
            check_writable("--out", tmp_path / name)
    check_writable("--out", tmp_path / "new" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("name", ("sample.py", "train.py", "eval.py", "ablate.py", "flow.py"))
def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path, name):
    """Most of a command's first second; here it takes a minute."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, name], env={**os.environ, "PYTHONPATH": str(tmp_path)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "stopped by Ctrl-C\n" and process.returncode in (-2, 130)
