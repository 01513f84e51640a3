"""Exercises from one source: source/exNN_*.py holds the solutions between two marks.

    python notebooks/exercises/make.py                   writes the blanks beside this file (over what was written into them)
    python notebooks/exercises/make.py solutions DIR     writes the solutions and the tests to DIR: python -m pytest DIR
"""
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOLUTION = re.compile(r"^( *)# BEGIN SOLUTION\n(.*?)^\1# END SOLUTION\n", re.DOTALL | re.MULTILINE)
NOTE = "# made by make.py from source/; write your code where NotImplementedError is raised\n"


def sources() -> list[Path]:
    """The sources, in the order of their numbers."""
    return sorted((HERE / "source").glob("ex*.py"))


def blank(source: str) -> str:
    """What a student begins with: each solution becomes one line that raises."""
    return NOTE + SOLUTION.sub(r'\1raise NotImplementedError("your turn")\n', source)


def solution(source: str) -> str:
    """The source without its marks."""
    return SOLUTION.sub(r"\2", source)


def write_solutions(folder: Path) -> None:
    """Solutions and tests, side by side, in a folder of their own."""
    assert folder.resolve() != HERE, "this would overwrite the blanks: name another folder"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sources():
        (folder / path.name).write_text(solution(path.read_text("utf-8")), "utf-8")
        shutil.copy(HERE / f"test_{path.name}", folder)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        for path in sources():
            (HERE / path.name).write_text(blank(path.read_text("utf-8")), "utf-8")
    elif len(sys.argv) == 3 and sys.argv[1] == "solutions":
        write_solutions(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)
