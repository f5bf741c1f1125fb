"""stdout and stderr that a program outlives."""

import codecs
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from vla_rl.reporting.streams import PLAIN, spell_out

SETUP = """
import errno, logging, os, sys
from vla_rl.reporting.streams import guard_streams, losses
stdout, stderr = guard_streams()
"""


def in_python(code, **streams):
    ends = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-c", SETUP + code], check=False, **ends)


def test_what_a_broken_pipe_does_not_take_is_lost_and_nothing_else_is():
    ours, theirs = os.pipe()
    os.close(ours)
    code = """
for line in range(3):
    print("line", line, flush=True)
assert stdout.error.errno == errno.EPIPE
print(losses(), file=sys.stderr)
"""
    done = in_python(code, stdout=theirs)
    os.close(theirs)
    assert (done.returncode, done.stderr.count(b"stdout cannot be written to (Broken pipe)")) == (0, 1)


def test_a_full_disk_fails_no_write_and_no_exit():
    with Path("/dev/full").open("wb") as full:
        done = in_python('print("lost"); print("lost too", file=sys.stderr)', stdout=full, stderr=full)
    assert done.returncode == 0


def test_a_reader_that_has_stopped_does_not_stop_progress_lines_and_sees_the_later_ones():
    ours, theirs = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", SETUP + STOPPED_READER], stdin=subprocess.PIPE, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    assert child.stderr is not None
    if not select.select([child.stderr], [], [], 60)[0]:
        child.kill()
    assert child.stderr.readline() == b"all written\n"  # nobody has read a byte
    with os.fdopen(ours, "rb") as reader:
        assert reader.readline() == b"line 0\n"
        os.set_blocking(ours, False)
        while reader.read1():  # what the pipe holds
            pass
        os.set_blocking(ours, True)
        child.communicate(b"go on\n", timeout=60)
        rest = reader.read().decode()
    assert "bytes of output were dropped while nobody read them]" in rest
    assert rest.endswith("later\n")
    assert child.returncode == 0


STOPPED_READER = """
from vla_rl.reporting import streams
streams.PATIENCE_S = 0.05
streams.drop_what_nobody_reads()
for line in range(20_000):  # twice what a pipe holds
    print("line", line, flush=True)
print("all written", file=sys.stderr, flush=True)
input()
print("later", flush=True)
"""


def test_results_wait_for_a_reader_that_has_stopped():
    ours, theirs = os.pipe()
    code = "for line in range(20_000): print('line', line)"
    child = subprocess.Popen([sys.executable, "-c", SETUP + code], stdout=theirs)
    os.close(theirs)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=3)
    with os.fdopen(ours, "rb") as reader:
        assert reader.read().count(b"\n") == 20_000
    assert child.wait(timeout=60) == 0


def test_a_loss_is_told_once_to_whoever_logs():
    code = """
logging.basicConfig(stream=sys.stderr, format="LOG %(message)s")
for line in range(3):
    print("line", line, flush=True)
"""
    with Path("/dev/full").open("wb") as full:
        done = in_python(code, stdout=full)
    assert done.stderr.count(b"LOG stdout cannot be written to (No space left on device)") == 1


def test_a_file_never_gets_the_number_of_a_stream_that_was_closed(tmp_path):
    path = tmp_path / "precious"
    code = f"""
file = open({str(path)!r}, "w")
print("to nowhere", flush=True)
os.write(1, b"to nowhere"); os.write(2, b"to nowhere")
file.write("mine"); file.close()
"""
    command = f'exec {sys.executable} -c "$0" >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, SETUP + code], check=False)
    assert (done.returncode, path.read_text()) == (0, "mine")


@pytest.mark.parametrize(
    ("shown", "ascii_only", "latin"),
    [
        ("σ=0.2 ρ Σ λ", "sigma=0.2 rho Sigma lambda", "sigma=0.2 rho Sigma lambda"),
        ("−1 ± 2 × 10²", "-1 +- 2 x 10^2", "-1 ± 2 × 10²"),
        ("a → b … é ▁█ ╭", "a -> b ... e ## +", "a -> b ... é ## +"),
        ("机", "?", "?"),
    ],
)
def test_what_a_terminal_cannot_encode_is_spelled_out(shown, ascii_only, latin):
    codecs.register_error(PLAIN, spell_out)
    assert shown.encode("ascii", PLAIN).decode("ascii") == ascii_only
    assert shown.encode("latin-1", PLAIN).decode("latin-1") == latin
    assert shown.encode("utf-8", PLAIN).decode() == shown


def test_the_name_of_a_file_that_is_no_text_is_printed_as_it_is(tmp_path):
    done = in_python("print(os.fsdecode(b'run-\\xff'))")
    assert (done.returncode, done.stdout) == (0, b"run-\xff\n")
