"""docs/PAPERS.md: every function, constant and test it names exists, every value is the code's, every place the code cites has a row."""
import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["source and formula", "here", "test", "ours", "in the paper"]
CITATION = re.compile(r"\b(K2\.5|K25a|K2|k1\.5|DS3|ML|KVL)(?: report)?[ #]"
                      r"(Eq\. \d+(?:-\d+)?|Alg\. \d+|Table \d+|App\.? [A-Z](?:\.\d+)?|\d+(?:\.\d+)+(?:-\d+(?:\.\d+)+)?|(?<=#)\d+)")
CODE = sorted([*(ROOT / "nanokimi").rglob("*.py"), *ROOT.glob("*.py")])


def table_rows(text):
    """[(line number, {column: cell})] of all tables."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("|") and not line.startswith("|---"):
            cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
            if cells != COLUMNS:
                assert len(cells) == len(COLUMNS), f"docs/PAPERS.md:{number}: {len(cells)} cells, not {len(COLUMNS)}"
                rows.append((number, dict(zip(COLUMNS, cells))))
    return rows


ROWS = table_rows((ROOT / "docs" / "PAPERS.md").read_text("utf-8"))


@lru_cache
def tree(path):
    return ast.parse((ROOT / path).read_text("utf-8"))


def names_of(node):
    """The names that a statement defines."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    targets = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [node.name] if hasattr(node, "name") else [target.id for target in targets if isinstance(target, ast.Name)]


def find(path, name):
    """The statement that defines `name` (also Class.method) in a file, or None."""
    node = tree(path) if (ROOT / path).is_file() else None
    for part in name.split("."):
        node = next((child for child in getattr(node, "body", []) if part in names_of(child)), None)
    return node


def literal(node, path):
    """The value of an expression: written out, or the name of a constant of the file; None for anything else."""
    if isinstance(node, ast.Name) and find(path, node.id) is not None:
        return defaults(path, find(path, node.id)).get(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def defaults(path, node):
    """{name: value} that a statement writes down: constants, a class's fields, a function's defaults, add("--option", default=...)."""
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        names, value = names_of(node), literal(node.value, path) if node.value is not None else None
        return dict(zip(names, value if len(names) > 1 and isinstance(value, tuple) else [value]))
    if isinstance(node, ast.ClassDef):
        fields = [child for child in node.body if isinstance(child, (ast.Assign, ast.AnnAssign))]
        return {name: value for field in fields for name, value in defaults(path, field).items()}
    arguments = node.args.posonlyargs + node.args.args
    found = {a.arg: literal(d, path) for a, d in zip(arguments[len(arguments) - len(node.args.defaults):], node.args.defaults)}
    found |= {a.arg: literal(d, path) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults) if d is not None}
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call) and n.args and str(literal(n.args[0], path)).startswith("--")):
        found |= {literal(call.args[0], path): literal(k.value, path) for k in call.keywords if k.arg == "default"}
    return found


def ticked(cell):
    """What stands between back ticks."""
    return re.findall(r"`([^`]+)`", cell)


def values(cell):
    """[(name, value as written)] of a cell like `tau = 0.05`, `--k = 8`."""
    return [tuple(text.split(" = ", 1)) for text in ticked(cell)]


def same(a, b):
    """Equal, and no True for 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def label(x):
    """A row's name in pytest's output."""
    return f"line{x}" if isinstance(x, int) else ""


# ---- the table -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number, row", ROWS, ids=label)
def test_a_row_names_what_there_is(number, row):
    here, tests, line = ticked(row["here"]), ticked(row["test"]), f"docs/PAPERS.md:{number}"
    assert here and (tests or row["test"] == "none"), f"{line}: `here` and `test` want names (`none` where there is no test)"
    for text in here:
        path, _, name = text.partition(":")
        assert find(path, name) is not None, f"{line}: there is no {name} in {path}"
    for text in tests:
        path, _, name = text.partition("::")
        assert isinstance(find(path, name), ast.FunctionDef), f"{line}: there is no test {name} in {path}"
    assert row["in the paper"].startswith(("given", "not disclosed", "inferred", "ours")), f"{line}: given or not disclosed?"


@pytest.mark.parametrize("number, row", [(number, row) for number, row in ROWS if row["ours"]], ids=label)
def test_a_value_is_the_code_s(number, row):
    written = {}
    for text in ticked(row["here"]):
        path = text.split(":")[0]
        for name, value in defaults(path, find(*text.split(":"))).items():
            written.setdefault(name, []).append(value)
    assert values(row["ours"]), f"docs/PAPERS.md:{number}: values are written `name = value`"
    for name, value in values(row["ours"]):
        assert any(same(ast.literal_eval(value), other) for other in written.get(name, [])), \
            f"docs/PAPERS.md:{number}: {name} = {value}, but the code has {written.get(name, 'no such default')}"


# ---- what the code cites -----------------------------------------------------------------------------------------------------------------

def citations(text):
    """{(source, place)} that a text cites, {("K2.5", "Eq. 1"), ("ML", "App D")}; of a range of sections, both ends."""
    found = set()
    for source, place in CITATION.findall(text):
        source, place = source.replace("K25a", "K2.5"), place.replace("App. ", "App ")
        found |= {(source, part) for part in (place.split("-") if place[0].isdigit() else [place])}
    return found


def test_citations_are_read():
    read = citations("(K2 Alg. 1) K2.5 Eq. 1, k1.5 Eq. 3; ML#2 footnote 1, K2#2.5, K25a App D, ML App. C; K2.5: 14, K2: 5T, K2 4 x")
    assert read == {("K2", "Alg. 1"), ("K2.5", "Eq. 1"), ("k1.5", "Eq. 3"), ("ML", "2"), ("K2", "2.5"), ("K2.5", "App D"), ("ML", "App C")}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_citation_has_a_row(path):
    known = set().union(*(citations(row["source and formula"]) for _, row in ROWS))
    missing = [f"{path.relative_to(ROOT)}:{number}: {source} {place}" for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
               for source, place in sorted(citations(line) - known)]
    assert not missing, f"cited in the code, but without a row in docs/PAPERS.md: {missing}"
