"""Refresh what README.md shows from results/*.json: the results table between its markers, and the picture of the stack.

    python docs/update.py
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def results_table(path):
    """A results file as a Markdown table with its provenance underneath."""
    if not path.exists():
        return f"*(no results/{path.name} yet)*"
    content = json.loads(path.read_text())
    lines = ["| row | mean over seeds | sd | target | met |", "|---|---|---|---|---|"]
    for row in content["rows"]:
        sd = "" if row["sd"] is None else f"{row['sd']:.3f}"
        lines.append(f"| {row['name']} | {row['mean']:.3f} | {sd} | {row['target'] or ''} | {met(row)} |")
    minutes = ", ".join(f"{m:g}" for m in content["minutes"])
    lines.append(f"\n`{content['command']}` · seeds {content['seeds']} · {minutes} minutes of training · {content['rows'][0]['problems']} problems a row, "
                 f"test split, greedy · {content['machine']} · commit {content['commit']}")
    return "\n".join(lines)


def met(row):
    """Whether the mean meets its target: yes, no, or nothing where there is none."""
    if not row["target"]:
        return ""
    sign, value = row["target"][:2], float(row["target"][2:])
    return "yes" if (row["mean"] >= value if sign == ">=" else row["mean"] <= value) else "**no**"


def fill(text, name, content):
    """Replace what stands between the markers of `name`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.S)
    assert pattern.search(text), f"README.md has no markers for {name}"
    return pattern.sub(lambda m: m[1] + content + m[2], text)


def main():
    from nanokimi.report import stack_picture
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(), "results", results_table(ROOT / "results" / "nano.json")))
    stack_picture(ROOT / "docs" / "stack.png")


if __name__ == "__main__":
    main()
