"""Exercises: blanks come from the source, solutions pass, blanks fail; every planted bug applies and shows the symptom that is written down."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks" / "exercises"
NAMES = sorted(path.stem for path in (FOLDER / "source").glob("*.py"))
PATCHES = sorted((FOLDER / "bugs").glob("*.patch"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def load_make():
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def run_tests(folder, tmp_path):
    """Runs pytest on a folder: (exit code, [(test file, message of its failure or None)])."""
    report = tmp_path / "report.xml"
    done = python("-m", "pytest", folder, "-q", "-p", "no:cacheprovider", f"--junitxml={report}")
    ended = lambda case: next((part for name in ("failure", "error", "skipped") if (part := case.find(name)) is not None), None)
    cases = [(case.get("classname").split(".")[-1], None if (bad := ended(case)) is None else f"{bad.get('message')}")
             for case in ElementTree.parse(report).iter("testcase")]
    return done.returncode, cases


def test_blanks_are_what_make_writes():
    make = load_make()
    assert len(NAMES) == 12 and NAMES == sorted(path.stem for path in FOLDER.glob("ex*.py"))
    for path in make.sources():
        source = path.read_text("utf-8")
        assert source.count("# BEGIN SOLUTION") == source.count("# END SOLUTION") == len(make.SOLUTION.findall(source)) > 0
        assert (FOLDER / path.name).read_text("utf-8") == make.blank(source), f"{path.name} is stale: python notebooks/exercises/make.py"
        assert "SOLUTION" not in make.blank(source) + make.solution(source)


def test_solutions_pass(tmp_path):
    assert python(FOLDER / "make.py", "solutions", tmp_path / "solutions").returncode == 0
    code, cases = run_tests(tmp_path / "solutions", tmp_path)
    assert code == 0 and all(message is None for _, message in cases), [case for case in cases if case[1]]
    assert {name for name, _ in cases} == {f"test_{name}" for name in NAMES}


def test_every_test_fails_on_its_blank(tmp_path):
    code, cases = run_tests(FOLDER, tmp_path)
    assert code == 1 and {name for name, _ in cases} == {f"test_{name}" for name in NAMES}
    wrong = [case for case in cases if not (case[1] or "").startswith("NotImplementedError: your turn")]
    assert not wrong, wrong


def test_nobody_meets_the_blanks_who_did_not_ask():
    done = python("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "notebooks")
    assert done.returncode == 5, done.stdout                                    # nothing collected


# ---- planted bugs ------------------------------------------------------------------------------------------------------------------------

def written_down():
    """{patch: (sound, with the bug)} from the table of bugs/README.md."""
    rows = re.findall(r"^\| (\d\d_\w+) \|.*\| ([\d.]+) \| ([\d.]+) \|$", (FOLDER / "bugs" / "README.md").read_text("utf-8"), re.MULTILINE)
    return {name: (float(sound), float(bug)) for name, sound, bug in rows}


def tree(folder, patch=None):
    """A copy of what the experiments need, with the bug planted."""
    shutil.copytree(ROOT / "nanokimi", folder / "nanokimi", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks/exercises/bugs").mkdir(parents=True)
    shutil.copy(FOLDER / "bugs/symptoms.py", folder / "notebooks/exercises/bugs")
    if patch:
        subprocess.run(["git", "apply", patch], cwd=folder, env=os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}, check=True)
    return folder


MEASURE = """
import json, runpy, sys
for folder, names in json.loads(sys.argv[1]):
    print("tree", folder, flush=True)
    sys.argv = ["symptoms.py", *names]
    runpy.run_path(f"{folder}/notebooks/exercises/bugs/symptoms.py", run_name="__main__")
    for name in [name for name in sys.modules if name.split(".")[0] == "nanokimi"]:
        del sys.modules[name]                               # the next tree brings its own; torch need not be imported again
"""


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """{patch: (sound, with the bug)} as measured now, by two processes side by side."""
    folder, found = tmp_path_factory.mktemp("bugs"), {}
    jobs = [(str(tree(folder / path.stem, path)), [path.stem[3:]]) for path in PATCHES]
    jobs = [(str(tree(folder / "sound")), [path.stem[3:] for path in PATCHES]), *jobs]
    parts = [json.dumps(jobs[start::2]) for start in (0, 1)]
    running = [subprocess.Popen([sys.executable, "-c", MEASURE, part], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) for part in parts]
    for process in running:
        for key, value in (line.split(" ", 1) for line in process.communicate()[0].splitlines()):
            if key == "tree":
                where = Path(value).name
            else:
                found[where, key] = float(value)
        assert process.returncode == 0
    return {path.stem: (found["sound", path.stem[3:]], found[path.stem, path.stem[3:]]) for path in PATCHES}


def test_the_gallery_is_complete():
    assert len(PATCHES) == 8 and set(written_down()) == {path.stem for path in PATCHES}
    text = (FOLDER / "bugs" / "README.md").read_text("utf-8")
    assert all(f"## {path.stem}\n" in text for path in PATCHES) and text.count("<details>") == text.count("</details>") == len(PATCHES)


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_a_bug_applies_to_this_tree_and_is_small(path):
    done = subprocess.run(["git", "apply", "--check", path.resolve()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    changed = [line for line in path.read_text("utf-8").splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
    assert len(changed) <= 8, f"{len(changed)} lines"


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_a_bug_shows_its_symptom(path, numbers):
    want, got = written_down()[path.stem], numbers[path.stem]
    gap = abs(want[0] - want[1])
    assert got == pytest.approx(want, abs=0.1 * gap), f"sound and with the bug: written {want}, measured {got}"
