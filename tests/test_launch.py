"""Every program runs twice, by `python` and by `netdoctor run` with an idle session, and must come out the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from netdoctor import launch
from netdoctor.errors import MisuseError
from tests.doors.commands import FAKE, ROOT, fake, python

WORLD = """
    import os, sys
    import __main__
    print(sys.argv, sys.path[0], os.getcwd(), len([p for p in sys.path if p == sys.path[0]]))
    print(__name__, __file__, __spec__ and __spec__.name, __package__, __cached__, __doc__, __builtins__)
    print(type(__loader__).__name__, __loader__.name, sorted(globals()))
    print(__main__ is sys.modules["__main__"], __main__.sys is sys, vars(__main__) is globals())
"""
PICKLES = """
    import pickle, inspect, multiprocessing
    class Own:
        pass
    def double(x):
        return 2 * x
    if __name__ == "__main__":
        print(type(pickle.loads(pickle.dumps(Own()))) is Own, inspect.getsource(double).strip())
        for method in ("fork", "spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                print(method, pool.map(double, [1, 2]))
"""
SCRIPTS = {
    "the world that a script sees": WORLD,
    "a docstring and a coding cookie": '# -*- coding: latin-1 -*-\n"""What it does."""\nprint(__doc__, ascii("\\xe9"))',
    "no future import leaks in": "def f(x: int): pass\nprint(f.__annotations__)",
    "classes and functions of __main__ pickle": PICKLES,
    "a module beside it": "import helper\nprint(helper.__file__)",
    "exit without a code": "raise SystemExit",
    "exit with a code": "import sys; print('bye'); sys.exit(3)",
    "exit with a large code": "import sys; sys.exit(259)",
    "exit with a text": "import sys; sys.exit('no data')",
    "exit with true": "import sys; sys.exit(True)",
    "an exception with its cause": """
        def inner():
            raise KeyError("inner")
        def outer():
            try:
                inner()
            except KeyError as error:
                raise ValueError("two\\nlines") from error
        outer()
    """,
    "an exception hook of its own": """
        import sys
        sys.excepthook = lambda kind, value, traceback: print("hook", kind.__name__, value, traceback.tb_lineno)
        raise RuntimeError("x")
    """,
    "a generator that exits": "raise GeneratorExit",
    "exit handlers and threads": """
        import atexit, threading, time
        atexit.register(print, "at exit")
        threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
        print("end of script")
    """,
    "a child that runs off the end": """
        import os, sys
        child = os.fork()
        if child:
            print("status", os.waitpid(child, 0)[1])
        else:
            sys.exit(5)
    """,
    "a change of folder": "import os; os.chdir('..'); 1 / 0",
    "standard input and error": "import sys; print(sys.stdin.read(), file=sys.stderr)",
    "warnings as it sets them": "import warnings; warnings.warn('careful')",
}


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text), encoding="latin-1")
    return file


def assert_same(folder: Path, *arguments: str) -> None:
    plain = python(*arguments, folder=folder)
    watched = fake("run", "--quiet", *arguments, folder=folder)
    assert watched.stdout == plain.stdout
    assert watched.stderr == plain.stderr
    assert watched.returncode == plain.returncode


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_as_under_python(name: str, tmp_path: Path) -> None:
    write(tmp_path, "script.py", SCRIPTS[name])
    write(tmp_path, "helper.py", "")
    assert_same(tmp_path, "script.py", "--json", "x", "-h", "--", "-m")


LOADERS = """
    import torch
    from torch.utils.data import DataLoader, Dataset, get_worker_info

    class Squares(Dataset):
        def __len__(self):
            return 8
        def __getitem__(self, index):
            return index * index, get_worker_info().id

    if __name__ == "__main__":
        for method in ("fork", "spawn"):
            loader = DataLoader(Squares(), batch_size=4, num_workers=2, multiprocessing_context=method)
            print(method, [[part.tolist() for part in batch] for batch in loader])
"""


@pytest.mark.slow
def test_data_loaders_with_workers_run_as_under_python(tmp_path: Path) -> None:
    write(tmp_path, "script.py", LOADERS)
    assert_same(tmp_path, "script.py")
    assert_same(tmp_path, "-m", "script")


def test_a_script_in_another_folder_through_a_link(tmp_path: Path) -> None:
    write(tmp_path, "real/script.py", WORLD + "    import helper; print(helper.__file__)")
    write(tmp_path, "real/helper.py", "")
    write(tmp_path, "linked/helper.py", "raise SystemExit('the wrong one')")
    (tmp_path / "linked" / "train.py").symlink_to("../real/script.py")
    assert_same(tmp_path, "linked/train.py")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("package.train", WORLD + "    from .sibling import value; print(value)"),
        ("package", WORLD),
        ("alone", WORLD),
        ("package.train", "import sys; sys.exit(4)"),
        ("package.train", PICKLES),
        ("package.sub.deep.train", WORLD),
    ],
)
def test_a_module_runs_as_under_python(name: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, "package/__init__.py", "print('package', __name__)")
    write(tmp_path, "package/sibling.py", "value = 5")
    is_package = name == "package"
    write(tmp_path, name.replace(".", "/") + ("/__main__.py" if is_package else ".py"), text)
    assert_same(tmp_path, "-m", name, "--epochs", "3")


def test_a_module_whose_package_raises_keeps_its_own_ending(tmp_path: Path) -> None:
    write(tmp_path, "package/__init__.py", "import sys; print('loading'); sys.exit(9)")
    write(tmp_path, "package/train.py", "print('never')")
    assert_same(tmp_path, "-m", "package.train")


def test_a_traceback_of_a_module_names_no_file_of_netdoctor(tmp_path: Path) -> None:
    write(tmp_path, "package/train.py", "def f():\n    raise ValueError('mine')\nf()")
    watched = fake("run", "-q", "-m", "package.train", folder=tmp_path)
    assert watched.returncode == 1
    assert "ValueError: mine" in watched.stderr
    assert "netdoctor" not in watched.stderr
    assert watched.stderr.count('File "') == 2


def test_ctrl_c_reports_then_leaves_with_the_shells_code(tmp_path: Path) -> None:
    write(tmp_path, "script.py", "import time\nprint('ready', flush=True)\ntime.sleep(60)")
    command = [sys.executable, str(FAKE), "run", "script.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert stderr.index("interrupted") < stderr.index("Traceback") < stderr.index("KeyboardInterrupt")
    assert "netdoctor/" not in stderr


def test_frames_of_netdoctor_are_taken_out_wherever_they_are() -> None:
    own = compile("def through(call):\n    call()\n", launch.__file__, "exec")
    names: dict[str, object] = {}
    exec(own, names)

    def user() -> None:
        raise ValueError("x")

    try:
        names["through"](user)  # type: ignore[operator]
    except ValueError as error:
        caught = launch.without_own_frames(error)
    files = []
    traceback = caught.__traceback__
    while traceback is not None:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    assert files == [__file__, __file__]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"def f(:\n", ", line 1 is not Python: "),
        (b"a = 1\n\nprint 'x'\n", ", line 3 is not Python: "),
        (b"\x7fELF\x00\x01", "Python"),
        (b"# fine\nx = '\xff'\n", "is not Python: "),
        ("(" * 5000 + ")" * 5000, "Python"),
    ],
)
def test_what_is_not_python_is_said_in_one_line(content: bytes | str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "data.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MisuseError) as caught:
        launch.script(str(file))
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_said(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    with pytest.raises(MisuseError, match="is a folder, not a script"):
        launch.script(str(tmp_path))
    with pytest.raises(MisuseError, match=r"no such file: .*none\.py$"):
        launch.script(str(tmp_path / "none.py"))
    with pytest.raises(MisuseError, match=r"no such file: .*train \(did you mean .*train\.py\?\)"):
        launch.script(str(tmp_path / "train"))


@pytest.mark.parametrize("name", ["nowhere", "email.nowhere", "json.", ".json", "", "email", "a b"])
def test_a_module_that_cannot_run_is_said_before_anything_is_imported(name: str) -> None:
    path, loaded = list(sys.path), set(sys.modules)
    with pytest.raises(MisuseError, match=r"no module named|cannot be run"):
        launch.module(name)
    assert sys.path == path
    assert {module for module in sys.modules if module not in loaded and "nowhere" in module} == set()


def test_finding_a_module_does_not_run_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "package_of_test/__init__.py", "raise AssertionError('imported too early')")
    write(tmp_path, "package_of_test/train.py", "")
    monkeypatch.chdir(tmp_path)
    assert launch.module("package_of_test.train").folder == str(tmp_path)


@pytest.mark.parametrize(
    ("outcome", "ended"),
    [
        (launch.Outcome(), "finished"),
        (launch.Outcome(0, SystemExit()), "finished"),
        (launch.Outcome(3, SystemExit(3)), "exit 3"),
        (launch.Outcome(130, KeyboardInterrupt()), "interrupted"),
        (launch.Outcome(1, TypeError("a\nb")), "raised TypeError: a"),
        (launch.Outcome(1, AssertionError()), "raised AssertionError"),
    ],
)
def test_an_ending_in_words(outcome: launch.Outcome, ended: str) -> None:
    assert outcome.ended == ended
