"""A child process ends in time and tells why it failed, whatever it does."""

import time

from vla_rl.envs.libero.child import run_python


def test_the_last_line_of_output_is_the_answer():
    outcome = run_python("import sys; print('noise'); print(sys.argv[1:])", "a", "b c", seconds=30)
    assert outcome.ok
    assert outcome.output == "['a', 'b c']"


def test_a_child_that_hangs_is_killed_at_its_deadline():
    started = time.monotonic()
    outcome = run_python("import time; time.sleep(60)", seconds=0.5)
    assert time.monotonic() - started < 50  # it sleeps for longer
    assert not outcome.ok
    assert outcome.reason == "no answer within 0.5 s"


def test_what_a_child_wrote_before_it_hung_is_kept():
    outcome = run_python("import time; print(1); print(2, flush=True); time.sleep(60)", seconds=3)
    assert (outcome.ok, outcome.output) == (False, "2")


def test_the_reason_is_the_error_and_not_what_follows_it():
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('graphics did not close cleanly', file=sys.stderr))\n"
        "import a_package_that_does_not_exist"
    )
    outcome = run_python(code, seconds=30)
    assert not outcome.ok
    assert outcome.reason == "ModuleNotFoundError: No module named 'a_package_that_does_not_exist'"


def test_an_exception_that_python_ignored_is_not_the_reason():
    code = """
class Context:
    def __del__(self):
        raise AttributeError("no context")
context = Context()
class GraphicsError(Exception): pass
raise GraphicsError("no display")
"""
    outcome = run_python(code, seconds=30)
    assert outcome.reason == "GraphicsError: no display"


def test_the_reason_names_the_class_without_its_module():
    assert run_python("import json; json.loads('{')", seconds=30).reason.startswith("JSONDecodeError: ")


def test_a_child_that_crashes_names_its_signal():
    outcome = run_python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", seconds=30)
    assert outcome.reason == "killed by signal 11"


def test_a_child_that_asks_a_question_gets_no_answer():
    outcome = run_python("input('Do you want to specify a custom path? ')", seconds=30)
    assert outcome.reason.startswith("EOFError")


def test_variables_are_added_to_the_environment():
    code = "import os; print(os.environ['PATH'] != '' and os.environ['PROBE'])"
    assert run_python(code, seconds=30, variables={"PROBE": "7"}).output == "7"


def test_a_clone_in_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero" / "__init__.py").write_text("raise ImportError('the clone')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code = "import importlib.util; spec = importlib.util.find_spec('libero'); print(spec and spec.origin)"
    assert str(tmp_path) not in run_python(code, seconds=30).output
