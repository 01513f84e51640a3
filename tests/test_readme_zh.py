"""README.zh.md says what README.md says, docs/LEARNED.zh.md what docs/LEARNED.md says: block by block the same kind, the same commands, numbers, names and links.

Words are the translator's; what is compared is generated tables (word for word), code (comments may be translated), and in tables and
paragraphs what stands between back ticks, links, and numbers (in paragraphs those with two or more decimals). Every difference is
reported with both lines. A link to a file that has a translation may lead to it.
"""
import importlib.util
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^<!-- (\w+) -->\n.*?^<!-- /\1 -->$|^```.*?^```$|(?:^(?!```|<!-- )[^\n]+\n?)+", re.S | re.M)
NUMBER, DECIMAL = re.compile(r"\d[\d,.]*\d|\d"), re.compile(r"(?<![\w.])\d+\.\d{2,}")
TRANSLATED = (("README.md", "README.zh.md"), ("docs/LEARNED.md", "docs/LEARNED.zh.md"))


@dataclass
class Block:
    """A piece of a README: its first line's number, its text, and what a translation must keep of it."""
    line: int
    text: str

    @property
    def kind(self):
        signs = {"<!-- ": "generated", "```": "code", "#": "heading", "|": "table", "![": "picture"}
        return next((kind for sign, kind in signs.items() if self.text.startswith(sign)), "paragraph")

    def kept(self):
        """The lines that must be equal in both languages."""
        lines = self.text.strip().splitlines()
        if self.kind == "generated":
            return lines
        if self.kind == "code":
            return [re.sub(r"(^|\s+)# .*$", "", line) for line in lines]
        if self.kind == "heading":
            return [re.match("#+", self.text)[0]]
        return [" ".join(essence(line, NUMBER)) for line in lines] if self.kind == "table" else essence(self.text, DECIMAL)

    def __str__(self):
        return f"{self.line} ({self.kind}: {' '.join(self.text.split())[:60]})"


def essence(text, number):
    """Back-ticked names, link targets and numbers, sorted: their order is the language's."""
    text = " ".join(text.split())                                        # a back-ticked name may be broken between lines
    ticked = re.findall(r"`[^`]+`", text)
    links = [target.replace(".zh.md", ".md") for target in re.findall(r"\]\(([^)#]+)", text)]      # headings have other names
    return [*sorted(ticked), *sorted(links), *sorted(number.findall(re.sub(r"`[^`]+`", "", text)))]


def blocks(text):
    return [Block(text.count("\n", 0, match.start()) + 1, match[0]) for match in BLOCK.finditer(text)]


def differences(english, chinese, names=TRANSLATED[0]):
    """Sentences that say which blocks differ, and in what; none where the translation is complete."""
    a, b = blocks(english), blocks(chinese)
    keys = [[(block.kind, *block.kept()) for block in side] for side in (a, b)]
    out = []
    for what, i, i_end, j, j_end in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        if what == "equal":
            continue
        for x, y in zip(a[i:i_end], b[j:j_end]):
            unequal = ((n, *pair) for n, pair in enumerate(zip_longest(x.kept(), y.kept())) if pair[0] != pair[1])
            n, one, other = next(unequal, (0, x.kind, y.kind))
            at = (x.line, y.line) if x.kind == "paragraph" else (x.line + n, y.line + n)
            mend = "; python docs/update.py copies it" if x.kind == y.kind == "generated" else ""
            out.append(f"{names[0]}:{x} and {names[1]}:{y} differ; lines {at[0]} and {at[1]}: {one!r} against {other!r}{mend}")
        paired = min(i_end - i, j_end - j)
        where = f"before its line {b[j_end].line}" if j_end < len(b) else "at its end"
        out += [f"{names[0]}:{block} has no counterpart in {names[1]} ({where})" for block in a[i + paired:i_end]]
        out += [f"{names[1]}:{block} has no counterpart in {names[0]}" for block in b[j + paired:j_end]]
    return out


def read(names):
    return [(ROOT / name).read_text("utf-8") for name in names]


@pytest.mark.parametrize("names", TRANSLATED)
def test_the_chinese_file_says_what_the_english_one_says(names):
    found = differences(*read(names), names)
    assert not found, "\n".join([f"{' and '.join(names)} differ:", *found])


@pytest.mark.parametrize("names", TRANSLATED)
def test_each_links_to_the_other_at_the_top(names):
    english, chinese = (text.splitlines()[2] for text in read(names))
    name, translated = (Path(path).name for path in names)
    assert f"]({translated})" in english and f"]({name})" in chinese


def test_a_difference_is_found_and_named():
    english = "# a\n\nRuns `x` in 0.25.\n\n```bash\npython a.py   # see\n```\n\n| n | 1 |\n|---|---|\n| m | 2.5 % |\n\n"
    english += "<!-- r -->\n| 3 |\n\ntext\n<!-- /r -->\n"
    chinese = english.replace("Runs `x` in 0.25.", "在 0.25 里运行 `x`。").replace("# see", "# 看").replace("| m |", "| 米 |")
    assert [block.kind for block in blocks(english)] == ["heading", "paragraph", "code", "table", "generated"]
    assert differences(english, chinese) == []
    for old, new, line in (("0.25", "0.26", 3), ("`x`", "`y`", 3), ("a.py", "b.py", 5), ("2.5", "2.6", 9), ("| 3 |", "| 4 |", 13)):
        found, = differences(english, chinese.replace(old, new))
        assert f"README.md:{line} " in found and f"README.zh.md:{line} " in found
    found, = differences(english.replace("\n\n```", "\n\nA new paragraph.\n\n```", 1), chinese)
    assert found.startswith("README.md:5 (paragraph: A new paragraph.) has no counterpart")


def test_update_copies_what_is_generated():
    spec = importlib.util.spec_from_file_location("update", ROOT / "docs" / "update.py")
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    english, chinese = "one\n<!-- r -->\n| 3 |\n<!-- /r -->\n", "一\n<!-- r -->\nold\n<!-- /r -->\n二\n"
    assert update.copy_generated(english, chinese) == "一\n<!-- r -->\n| 3 |\n<!-- /r -->\n二\n"
    english, chinese = read(TRANSLATED[0])
    assert update.copy_generated(english, chinese) == chinese, "README.zh.md is stale: python docs/update.py"
