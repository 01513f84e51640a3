"""What rl.py shows while it runs: the numbers of an iteration, a live table, metrics.jsonl. docs/METRICS.md says how to read them."""
import json

import numpy as np
from rich.live import Live
from rich.table import Table

from . import team
from .checkpoint import keep_rows
from .plan import console, say

SHOWN = {"reward": "{:.3f}", "pass_rate": "{:.1%}", "zero_variance": "{:.0%}", "advantage_spread": "{:.3f}", "entropy": "{:.3f}",
         "log_ratio": "{:.4f}", "log_ratio_max": "{:.2f}", "mismatch": "{:.5f}", "mismatch_kl": "{:.1e}", "update_rms": "{:.3f}",
         "length": "{:.1f}", "truncated": "{:.1%}", "tool_calls": "{:.2f}",
         "tool_errors": "{:.1%}", "rollout_tokens_s": "{:.0f}", "update_tokens_s": "{:.0f}", "steps": "{}", "stale": "{:.1%}"}


def summary(groups, unfinished, stats, clock, version):
    """The numbers of an iteration. clock: perf_counter before the rollout, after it, and after the update; version: the policy of now."""
    taken = {"rollout_s": clock[1] - clock[0], "update_s": clock[2] - clock[1], "unfinished": len(unfinished)}
    if not groups:
        return taken | {"steps": 0, "abilities": {}}                             # nothing is over yet (--segment, --stale)
    responses = [response for group in groups for response in group.responses]
    rewards = np.array([group.rewards for group in groups])                      # (P, k)
    logprobs = [logprob for r in responses for logprob in r.own_logprobs()]
    calls = [ok for r in responses for ok in r.tools]
    abilities = {}
    for group in groups:
        abilities.setdefault(f"{group.item.modality} {group.item.ability}", []).append(group.solved())
    return {"reward": float(rewards.mean()), "pass_rate": float(np.mean([group.solved() for group in groups])),
            "zero_variance": stats["zero_variance"],
            "advantage_spread": float((rewards - rewards.mean(1, keepdims=True)).std()), "entropy": float(-np.mean(logprobs)),
            "log_ratio": stats["log_ratio"], "log_ratio_max": stats["log_ratio_max"],
            **{name: value for name, value in stats.items() if name.startswith(("mismatch", "update_rms"))},
            "length": len(logprobs) / len(responses), "truncated": float(np.mean([r.stop != "end" for r in responses])),
            "tool_calls": len(calls) / len(responses), "tool_errors": float(np.mean([not ok for ok in calls])) if calls else 0.0,
            "rollout_tokens_s": len(logprobs) / (clock[1] - clock[0]), "update_tokens_s": stats["tokens"] / (clock[2] - clock[1]),
            **taken, "steps": stats["steps"],
            "stale": float(np.mean([sampled_by < version for r in responses for sampled_by in r.versions])),
            "abilities": {name: float(np.mean(values)) for name, values in sorted(abilities.items())}}


class Panel:
    """A live table of the last iterations where there is a terminal, a line every ten (and the first three without one), and metrics.jsonl."""

    def __init__(self, folder, done):
        self.path, self.recent = folder / "metrics.jsonl", []
        self.silent = team.rank() > 0
        if not self.silent:
            keep_rows(self.path, lambda row: row["iteration"] <= done)

    def __enter__(self):
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal and not self.silent else None
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error):
        if self.live:
            self.live.stop()

    def row(self, row):
        """One iteration's numbers."""
        if self.silent:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.recent = [*self.recent[-9:], row]
        if self.live:
            self.live.update(self.table())
        if row["iteration"] % 10 == 1 or not self.live and row["iteration"] <= 3:
            finished = [r for r in self.recent if "pass_rate" in r]
            mean = lambda name: np.mean([r[name] for r in finished] or [float("nan")])
            say(f"{row['iteration']:4d}  {row['seconds'] / 60:.1f} min  reward {mean('reward'):.3f}  pass {mean('pass_rate'):.1%}  length "
                f"{mean('length'):.0f}  same {mean('zero_variance'):.0%}  cut {mean('truncated'):.0%}  (means of {len(finished)})")

    def table(self):
        """The last iteration and the mean of the last ten, then abilities."""
        table = Table(title=f"iteration {self.recent[-1]['iteration']}", title_justify="left")
        for column in ("", "now", "last ten"):
            table.add_column(column, justify="left" if not column else "right")
        for name, form in SHOWN.items():
            values = [row[name] for row in self.recent if name in row]
            if values:
                table.add_row(name.replace("_", " "), form.format(values[-1]), form.format(float(np.mean(values)) if "." in form else values[-1]))
        for name in sorted({name for row in self.recent for name in row["abilities"]}):
            values = [row["abilities"][name] for row in self.recent if name in row["abilities"]]
            table.add_row(name, f"{values[-1]:.0%}", f"{np.mean(values):.0%}")
        return table
