"""The ledger: intervals against closed forms and simulation, arms that differ only in what they claim, going on, the generated page."""
import inspect
import json
import re
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, micro_tokenizer
from safetensors.torch import load_file
from scipy import stats

import rl
import train
from nanokimi import arms, checkpoint, claims, data, intervals, ledger
from nanokimi.arms import ArmBatches, Settings, mixture
from nanokimi.config import PRESETS
from nanokimi.vision import VisionClip, patchify
from nanokimi.world import exam

VISION = PRESETS["micro"].model.vision


@pytest.fixture(scope="module")
def tokenizer():
    return micro_tokenizer()


# ---- arithmetic ------------------------------------------------------------------------------------------------------------------------

def test_one_seed_is_students_interval_over_problems_and_one_number_a_training_is_it_over_seeds():
    gaps = np.random.default_rng(0).normal(0.1, 1, 200)
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert intervals.interval(gaps[None]) == pytest.approx((gaps.mean(), low, high))
    assert intervals.interval(gaps[:3, None]) == pytest.approx((gaps[:3].mean(), *stats.ttest_1samp(gaps[:3], 0).confidence_interval(0.95)))
    assert intervals.interval(gaps[:1, None]) == (gaps[0], None, None)
    assert intervals.interval(np.ones((2, 5))) == (1, None, None), "where nothing varies nobody knows how sure that is"


def test_with_many_seeds_it_is_as_wide_as_the_bootstrap_that_resamples_seeds_and_problems():
    rng = np.random.default_rng(1)
    gaps = rng.normal(0, 0.5, (12, 1)) + rng.normal(0, 1, (1, 80)) + rng.normal(0, 1, (12, 80))
    means = [gaps[rng.integers(12, size=12)][:, rng.integers(80, size=80)].mean() for _ in range(3000)]
    mean, low, high = intervals.interval(gaps)
    assert high - low == pytest.approx(np.subtract(*np.quantile(means, [0.975, 0.025])), rel=0.2)


@pytest.mark.parametrize("seed, problem, rest", [(0.2, 1, 1), (0.02, 0.5, 3), (0.5, 0, 1)])
def test_three_seeds_cover_the_truth(seed, problem, rest):
    """95 of 100 intervals must hold it; treating all answers as independent holds it far less often where runs differ by luck."""
    rng, hits, naive = np.random.default_rng(2), [], []
    for _ in range(600):
        gaps = 0.3 + rng.normal(0, seed, (3, 1)) + rng.normal(0, problem, (1, 100)) + rng.normal(0, rest, (3, 100))
        _, low, high = intervals.interval(gaps)
        hits.append(low < 0.3 < high)
        naive.append(abs(gaps.mean() - 0.3) < 1.96 * gaps.std() / gaps.size ** 0.5)
    assert np.mean(hits) > 0.93
    assert seed < 0.1 or np.mean(naive) < 0.9


@pytest.mark.parametrize("a, b", [(0.97, 0.9), (0.5, 0.45), (0.02, 0.0)])
def test_shares_without_their_answers_cover_the_truth(a, b):
    counts, n = np.arange(201), 200
    first, second = (stats.binom.pmf(counts, n, p) for p in (a, b))
    covered = sum(first[i] * second[j] for i in counts for j in counts if first[i] * second[j] > 1e-7
                  and (gap := intervals.share_interval([i / n], [j / n], n))[1] <= a - b <= gap[2])
    assert covered > 0.93
    assert intervals.share_interval([1.0], [0.0], 200)[1] < 1, "a share of 1 is not certain"


def test_the_rule_of_the_verdict():
    assert claims.holds("> 0", 0.01, 0.2) and not claims.holds("> 0", -0.01, 0.2) and claims.holds("> -0.02", -0.01, 0.2)
    assert claims.holds("< 0", -0.2, -0.1) and not claims.holds("< 0", -0.2, 0.1) and not claims.holds("> 0", None, None)
    assert claims.holds("", 1, 2) is None
    words = {(): "not run yet", (None, None): "no verdict", (True, True, None): "reproduced", (True, False): "partly", (False, None): "not at this scale"}
    assert {answers: claims.verdict(answers) for answers in words} == words


# ---- the table -------------------------------------------------------------------------------------------------------------------------

def test_every_claim_has_a_source_and_every_comparison_its_arms_metrics_and_rows():
    for claim in ledger.CLAIMS:
        assert re.match(r"(K2\.5|K2|k1\.5|Moonlight) \d", claim.source), claim.name
        assert claim.reported and claim.experiment and (claim.compares or claim.known), claim.name
        for compare in claim.compares:
            assert {compare.arm, compare.against} <= set(claim.arms) and compare.metric in ledger.METRICS, compare
        for known in claim.known:
            rows = {row["name"] for row in json.loads((ROOT / "results" / f"{known.file}.json").read_text("utf-8"))["rows"]}
            assert {known.row, known.against} - {""} <= rows, known
        for pair in (*claim.compares, *claim.known):
            assert re.fullmatch(r"([<>] -?\d+(\.\d+)?)?", pair.expect), pair
    assert all(row in exam.ROWS for kind, rows in ledger.METRICS.values() for row in rows if kind not in ("log", "bits"))


def settings_by_arm(claim):
    return {arm: claims.settings_of(claim, arm, "nano") for arm in claim.arms}


@pytest.mark.parametrize("claim", [claim for claim in ledger.CLAIMS if claim.arms], ids=lambda claim: claim.name)
def test_arms_have_the_same_budget_and_valid_options(claim, monkeypatch):
    """No arm may train longer than another one; rl.py must know every option, and arms differ in nothing that they do not name."""
    budgets = {(s.steps, s.documents, s.length, s.sft_steps, s.sft_tokens) for s in settings_by_arm(claim).values()}
    assert len(budgets) == 1
    seen = set()
    for arm, s in settings_by_arm(claim).items():
        changed = {name for name, value in asdict(s).items() if value != getattr(Settings(**claim.shared), name)}
        assert changed <= set(claim.arms[arm]), arm
        if s.rl:
            again = inspect.signature(rl.recycle).parameters["problems"].default if s.rl.get("flywheel") else 0
            monkeypatch.setattr(rl, "reinforce", lambda args, *_, **__: seen.add((args.k * (args.iterations * args.problems + again), args.pool)))
            monkeypatch.setattr(rl, "flywheel", rl.reinforce)
            arms.reinforce(Path("nowhere"), s, 0, "32-true")
    assert len(seen) <= 1


def test_a_flywheel_arm_ends_with_rl(monkeypatch):
    ended = []
    monkeypatch.setattr(rl, "reinforce", lambda args, run: ended.append(args.name)), monkeypatch.setattr(rl, "close", None)
    monkeypatch.setattr(rl, "settle", lambda *_: None), monkeypatch.setattr(rl, "recycle", lambda *_: None)
    arms.reinforce(Path("nowhere"), Settings(rl={"flywheel": True}), 0, "32-true")
    assert ended == ["rl-first", "rl"]


def batches_of(tokenizer, s, stage="pretrain", steps=10, cls=ArmBatches, length=256):
    more = {"settings": s} if cls is ArmBatches else {}
    return cls(stage, tokenizer, VISION, 3, 24, length, steps, **more)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_an_arm_without_changes_reads_what_train_reads(tokenizer, stage):
    ours, theirs = (batches_of(tokenizer, Settings(), stage, cls=cls, length=384)[7] for cls in (ArmBatches, data.Batches))
    assert ours[1] == theirs[1] and all(torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets) for a, b in zip(ours[0], theirs[0]))


def drawn_kinds(s):
    counts = {}
    for step in range(s.steps):
        for kind in data.draw_kinds(np.random.default_rng(step), mixture(s, step / s.steps), s.documents // 2):
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def test_early_mid_and_late_fusion_read_equally_much_of_both(tokenizer):
    totals = {arm: drawn_kinds(s) for arm, s in settings_by_arm(ledger.BY_NAME["fusion"]).items()}
    seen = {arm: sum(n for kind, n in counts.items() if kind in arms.VISUAL) for arm, counts in totals.items()}
    whole = sum(totals["early"].values())
    assert all(sum(counts.values()) == whole for counts in totals.values())
    assert all(abs(n / whole - 0.16) < 0.003 for n in seen.values()), seen
    for kind, n in totals["early"].items():
        assert all(abs(counts[kind] - n) < 0.05 * n + 60 for counts in totals.values()), kind
    late = settings_by_arm(ledger.BY_NAME["fusion"])["late"]
    share = lambda progress: sum(v for k, v in mixture(late, progress).items() if k in arms.VISUAL)
    assert share(0.79) == 0 and share(0.8) == pytest.approx(0.8)
    _, counts = batches_of(tokenizer, late)[7]
    assert counts["image_tokens"] == counts["clip_tokens"] == 0 < batches_of(tokenizer, late)[8][1]["image_tokens"]


def test_shares_are_what_the_arms_are_called_and_the_rest_keeps_its_proportions():
    for name, kinds, field in (("nplus1-share", arms.CLIPS, "clips"), ("zero-vision-questions", arms.QUESTIONS, "questions")):
        for arm, s in settings_by_arm(ledger.BY_NAME[name]).items():
            mix, share = mixture(s, 0.5), getattr(s, field)
            assert sum(v for k, v in mix.items() if k in kinds) == pytest.approx(share) and sum(mix.values()) == pytest.approx(1), arm
            rest = {k: v / s.mix[k] for k, v in mix.items() if k not in kinds}
            assert max(rest.values()) == pytest.approx(min(rest.values())), arm


def test_text_and_text_and_picture_chats_are_equally_many_tokens(tokenizer):
    made = {arm: batches_of(tokenizer, s, "sft", 4, length=384)[1] for arm, s in settings_by_arm(ledger.BY_NAME["zero-vision-sft"]).items()}
    assert all(4800 <= counts["tokens"] < 4800 + 2 * 384 for _, counts in made.values())
    assert made["text"][1]["image_tokens"] == 0 and all(batch.patches is None for batch in made["text"][0])
    assert made["both"][1]["image_tokens"] > 0.05 * 4800


def test_the_eye_is_taught_in_half_of_the_chats_and_asked_without_the_tool(tokenizer, tmp_path, monkeypatch):
    by_arm = settings_by_arm(ledger.BY_NAME["tools"])
    shown, ask = [], arms.eye_chat
    monkeypatch.setattr(arms, "eye_chat", lambda *args: shown.append(ask(*args)) or shown[-1])
    chats = {arm: batches_of(tokenizer, s, "sft", 4, length=384).chats(np.random.default_rng(0), 20000) for arm, s in by_arm.items()}
    shares = {arm: np.mean([kind == "picture" for kind, _ in drawn]) for arm, drawn in chats.items()}
    assert shares["Python"] == 0 and abs(shares["eyes"] - 0.5) < 0.12
    assert [doc for kind, doc in chats["eyes"] if kind == "picture"] == shown, "chats about other pictures teach nothing about these"
    doc = shown[0]
    text = tokenizer.decode([i for i, learned in zip(doc.ids, doc.mask) if learned])
    assert len(doc.clips) == 1 and "the result is" in text and "tool_call" not in text
    asked = []
    monkeypatch.setattr(arms.evaluate, "ask_chat", lambda engine, problems, tools: asked.append(tools) or [None] * len(problems))
    monkeypatch.setattr(arms, "content_of", lambda response: "")
    monkeypatch.setattr(arms, "Engine", lambda *_: None)
    monkeypatch.setattr(arms, "open_stage", lambda *_: None)
    monkeypatch.setattr(arms.Tokenizer, "load", lambda *_: tokenizer)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model.safetensors").touch()
    for s in by_arm.values():
        arms.measure(tmp_path, s, [["chat", "tool_picture"]], "val", 3)
    assert asked == [True, False]


def test_what_a_picture_tells_is_the_loss_it_saves_against_another_ones(tokenizer, monkeypatch):
    model, read = SimpleNamespace(config=SimpleNamespace(vision=VISION)), []

    def stub(_, __, documents):
        read.append(documents)
        return [0] * 4, [6.0 * len(read)] * 4, [sum(doc.mask) for doc in documents]
    monkeypatch.setattr(arms, "read", stub)
    told = arms.told_row(model, tokenizer, "chat_picture", "val", 4)
    own, blind = read
    assert told == [6.0 / sum(doc.mask) for doc in own] and min(told) > 0, "a picture that saves nats tells something"
    said = lambda doc: tokenizer.decode([i for i, learned in zip(doc.ids, doc.mask) if learned])
    assert [said(doc) for doc in own] == [said(doc) for doc in blind], "the answer stays that of the right picture"
    shown = lambda docs: [[clip.frames.tobytes() for clip in doc.clips] for doc in docs]
    assert shown(blind) == shown(own)[2:] + shown(own)[:2] and shown(own) != shown(blind)


def test_frames_as_pictures_are_the_same_documents_with_more_media(tokenizer):
    docs = [data.pretrain_document(np.random.default_rng(5), tokenizer, replace(VISION, frames=frames), 10 ** 4, "events", 1.0)[1]
            for frames in (4, 1)]
    said = [[i for i, learned in zip(doc.ids, doc.mask) if learned] for doc in docs]
    assert said[0] == said[1] and all(len(clip.frames) == 1 for clip in docs[1].clips)
    assert sum(len(clip.frames) for clip in docs[0].clips) == len(docs[1].clips) > len(docs[0].clips)


def test_two_encoders_start_as_one_and_keep_the_order_of_clips(tokenizer):
    models = []
    for number in (1, 2):
        torch.manual_seed(0)
        models.append(arms.build(Settings(preset="micro", encoders=number), tokenizer.media_pad).eval())
    one, two = models
    rng = np.random.default_rng(0)
    sizes = ((4, 32, 48), (1, 16, 16), (3, 16, 32), (1, 48, 16))
    clips = [VisionClip(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
    inputs = patchify(clips, VISION.patch)
    with torch.no_grad():
        same = one.vision(*inputs)
        assert torch.allclose(two.vision(*inputs), same, atol=1e-5)
        two.vision.clip_vision.norm.weight.mul_(2), two.vision.clip_vision.norm.bias.mul_(2)
        other, tokens = two.vision(*inputs), [clip.tokens(VISION.patch) for clip in clips]
    for clip, a, b in zip(clips, same.split(tokens), other.split(tokens)):
        assert torch.allclose(a, b, atol=1e-5) == (len(clip.frames) == 1)
    assert all(torch.equal(p, dict(two.named_parameters())[name]) for name, p in one.named_parameters())
    optimizer = arms.make_optimizer(two, Settings(preset="micro"), "pretrain", PRESETS["micro"], "32-true")
    names = {id(p): name for name, p in two.named_parameters()}
    assert {"vision.embed.pos", "vision.clip_vision.embed.pos"} <= {names[id(p)] for p in optimizer.param_groups[1]["params"]}


# ---- running ---------------------------------------------------------------------------------------------------------------------------

def micro_note(**settings):
    s = claims.settings_of(replace(ledger.BY_NAME["optimizer"], arms={"one": {"length": 256} | settings}), "one", "micro")
    return {"settings": asdict(s), "seed": 1, "precision": "32-true", "problems": 3,
            "wanted": [["exact", "name"], ["nats", "name"], ["bits", "wiki"]]}


def test_an_arm_killed_and_continued_equals_uninterrupted(tmp_path, tokenizer, monkeypatch):
    """With what train.py has not: AdamW and two encoders."""
    monkeypatch.setattr(train.evaluate, "quick_documents", lambda *_: [])
    monkeypatch.setattr(arms, "SAVE_EVERY", 0)
    note, clip, calls = micro_note(optimizer="adamw", encoders=2, sft_steps=2), train.qk_clip, []
    for name in ("whole", "cut"):
        tokenizer.save(tmp_path / name / "tokenizer")
    arms.run_arm(tmp_path / "whole", note)

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError
        return clip(*args)
    monkeypatch.setattr(train, "qk_clip", killed)
    with pytest.raises(ZeroDivisionError):
        arms.run_arm(tmp_path / "cut", note)
    assert not (tmp_path / "cut" / "pretrain" / "model.safetensors").exists()
    arms.run_arm(tmp_path / "cut", note)
    for stage in ("pretrain", "sft"):
        a, b = (load_file(tmp_path / name / stage / "model.safetensors") for name in ("whole", "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    values = arms.measure(tmp_path / "cut", Settings(**note["settings"]), note["wanted"], "val", 3)
    assert {name: len(v) for name, v in values.items()} == {"exact name": 3, "nats name": 3, "bits wiki": 3}
    assert values == arms.measure(tmp_path / "whole", Settings(**note["settings"]), note["wanted"], "val", 3)


@pytest.mark.parametrize("changes, learns", [({}, False), ({"pictures": 0.5}, True), ({"eyes": 0.5}, True)], ids=["text", "pictures", "eyes"])
def test_the_encoder_learns_in_a_cold_start_that_shows_pictures(tmp_path, tokenizer, monkeypatch, changes, learns):
    monkeypatch.setattr(train.evaluate, "quick_documents", lambda *_: [])
    note = micro_note(steps=2, sft_steps=2, sft_tokens=1500, **changes)
    tokenizer.save(tmp_path / "tokenizer")
    arms.run_arm(tmp_path, note)
    before, after = (load_file(tmp_path / stage / "model.safetensors") for stage in ("pretrain", "sft"))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("vision.")) == learns
    norms = after["language.embed.weight"].norm(dim=1)
    assert norms[tokenizer.chat_ids].median() > 1.5 * norms.median(), "an arm's cold start begins as train.py's"


def test_minutes_are_those_of_the_last_settings():
    event = lambda run, seconds=None, **more: {"run": run} | ({"settings": more} if seconds is None else {"seconds": seconds})
    lines = [event("a/x-0", steps=1), event("a/x-0", 100), event("ab/x-0", steps=1), event("ab/x-0", 7),
             event("a/x-0", steps=2), event("a/x-0", 30), event("a/x-0", steps=2), event("a/x-0", 12)]
    assert claims.seconds_taken(lines, "a") == {"a/x-0": 42}
    again = [*lines, event("a/x-0", steps=2) | {"anew": True}, event("a/x-0", 20)]
    assert claims.seconds_taken(again, "a") == {"a/x-0": 20}, "an arm whose folder was deleted begins again"


def test_a_started_arm_is_noted_with_whether_it_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(claims.subprocess, "Popen", lambda *_, **__: object())
    monkeypatch.setattr(claims.plan, "commit", lambda: "abc")
    args = SimpleNamespace(root=tmp_path, out=tmp_path / "claims.json")
    (run := tmp_path / "a" / "x-0").mkdir(parents=True)
    (run / "arm.json").write_text('{"settings": {}}')
    for _ in range(2):
        claims.begin(args, {}, run, "test")
    assert [line["anew"] for line in checkpoint.read_rows(tmp_path / "claims_runs.jsonl")] == [True, False]


def test_one_command_runs_all_arms_once_and_writes_what_it_found(tmp_path, tokenizer, monkeypatch, capsys):
    """Two arms with two rates: each rate on val, the better one on test; the second call starts nothing."""
    claim = ledger.Claim("tiny", "tiny", "K2 1", "nothing", "nothing", shared={"length": 256}, arms={"a": {}, "b": {"qk_clip": 1.0}},
                         rates=(1e-3, 2e-3), choose_by="loss on those names",
                         compares=(ledger.Compare("loss on those names", "a", "b", "< 0"),
                                   ledger.Compare("largest attention logit", "a", "b", "> 0")))
    monkeypatch.setattr(claims, "CLAIMS", [claim])
    monkeypatch.setattr(claims, "BY_NAME", {"tiny": claim})
    monkeypatch.setattr(claims, "SMALL", {"steps": 2, "sft_steps": 0, "documents": 8})
    root, out = tmp_path / "arms", tmp_path / "results" / "claims.json"
    tokenizer.save(root / "tokenizer")
    checkpoint.write_json(root / "ledger.json", {"precision": "32-true"})
    asked = ["tiny", "--preset", "micro", "--root", str(root), "--out", str(out), "--problems", "3", "--seeds", "0", "--jobs", "1"]
    started = []

    def begin(args, running, run, split):                                # in this process: importing torch again takes seconds
        started.append((run.name, split))
        monkeypatch.setattr(sys, "argv", ["arms", str(run), split])
        arms.main()
        claims.note(args, "finished", run, seconds=60.0)
    monkeypatch.setattr(claims, "begin", begin)
    monkeypatch.setattr(train.evaluate, "quick_documents", lambda *_: [])
    noted = SimpleNamespace(root=root, out=out)                          # an arm of older settings, whose folder is gone: not of these minutes
    claims.note(noted, "started", root / "tiny" / "a-lr9-0", anew=True, settings={}), claims.note(noted, "finished", root / "tiny" / "a-lr9-0", seconds=6000)
    claims.main(asked)
    assert len(started) == 6 and [split for _, split in started] == ["val"] * 4 + ["test"] * 2
    claims.main(asked)
    assert len(started) == 6, "what is done was done again"
    content = json.loads(out.read_text("utf-8"))
    said = lambda arm, rate, split: json.loads((root / "tiny" / f"{arm}-lr{rate:g}-0" / f"{split}.json").read_text("utf-8"))
    read = lambda *run: said(*run)["nats clip_name_unshown"]
    best = {arm: min((1e-3, 2e-3), key=lambda rate: np.mean(read(arm, rate, "val"))) for arm in "ab"}
    assert content["rates"]["tiny"] == best and content["minutes"] == {"tiny": 6} and content["longest"] == {"tiny": 2}, "val and test of the chosen rate are one arm"
    a, b = (read(arm, best[arm], "test") for arm in "ab")
    gap = content["differences"][0]
    assert gap["difference"] == pytest.approx(np.mean(a) - np.mean(b)) and gap["seeds"] == [0] and gap["problems"] == 3
    assert content["differences"][1]["low"] is None, "one number of one seed has no interval"
    reads = [len(path.read_text("utf-8").splitlines()) for path in (root / "tiny").glob("*/test_reads.jsonl")]
    assert reads == [1, 1], "a reading of the test split must be noted, and rates must not be chosen on it"
    claims.write_docs(out.parent, tmp_path / "CLAIMS.md")
    page = (tmp_path / "CLAIMS.md").read_text("utf-8")
    assert "(one seed)" in page and f"chosen on val: a {best['a']:g}, b {best['b']:g}." in page
    shutil.copytree(root / "tiny" / f"a-lr{best['a']:g}-0", root / "tiny" / f"a-lr{best['a']:g}-1")
    shutil.copytree(root / "tiny" / f"b-lr{best['b']:g}-0", root / "tiny" / f"b-lr{best['b']:g}-1")
    claims.main(asked)
    assert json.loads(out.read_text("utf-8"))["differences"][0]["seeds"] == [0, 1], "another seed's arms were left out of the results"
    older = json.loads((note := root / "tiny" / f"a-lr{best['a']:g}-0" / "arm.json").read_text("utf-8"))
    del older["settings"]["eyes"]
    note.write_text(json.dumps(older))
    claims.main(asked)                                                   # begun before there was that setting: it had its default
    note.write_text(json.dumps(older | {"precision": "bf16-mixed"}))
    with pytest.raises(SystemExit):
        claims.main(asked)
    assert "other settings" in capsys.readouterr().err
    note.write_text(json.dumps(older))
    published, args = json.loads(out.read_text("utf-8")), claims.arguments([*asked[:-4], "--seeds", "2"])
    assert claims.best_rate(args, claim, "a") == best["a"], "rates are those of the first seed, whichever is asked for"
    shutil.rmtree(root / "tiny")                                         # as in a clone, whose runs/ is empty
    args.precision = "32-true"
    claims.note(args, "started", root / "tiny" / "a-7", anew=True, settings={})                                          # and never ended
    claims.note(args, "stopped", root / "tiny" / "a-7", seconds=6000)
    claims.write_results(args)
    kept = json.loads(out.read_text("utf-8"))
    assert kept == published and kept["ran"]["tiny"].endswith(f"; 32-true; commit {claims.plan.commit()}"), "what others measured was thrown away"
    claims.write_docs(out.parent, tmp_path / "CLAIMS.md")
    page = (tmp_path / "CLAIMS.md").read_text("utf-8")
    assert f"Ran on {published['ran']['tiny']}." in page and "length 256" in page and "older" not in page
    monkeypatch.setattr(claims, "CLAIMS", [replace(claim, shared={"length": 128})])
    claims.write_docs(out.parent, tmp_path / "CLAIMS.md")
    page = (tmp_path / "CLAIMS.md").read_text("utf-8")
    assert "numbers below are older" in page and "length 256" in page and "length 128" not in page, "settings must be those of the numbers"


def test_arms_of_older_settings_do_not_count(tmp_path):
    claim, args = claims.BY_NAME["qk-clip"], SimpleNamespace(preset="nano", root=tmp_path)
    (run := claims.folder_of(args, claim, "off", 0)).mkdir(parents=True)
    note = {"settings": asdict(claims.settings_of(claim, "off", "nano")), "seed": 0, "precision": "32-true", "begins": ""}
    checkpoint.write_json(run / "arm.json", note)
    assert not claims.answered(args, claim, "off", run, None)
    (run / "test.json").touch()
    assert claims.answered(args, claim, "off", run, None)
    note["settings"]["steps"] += 1
    checkpoint.write_json(run / "arm.json", note)
    assert not claims.answered(args, claim, "off", run, None)


@pytest.mark.parametrize("given", [(), ("--out", "elsewhere.json"), ("--root", "elsewhere")])
@pytest.mark.parametrize("look", [("--preset", "micro"), ("--problems", "9")])
def test_numbers_of_a_quick_look_are_not_published(capsys, look, given):
    """Nor does it come among nano's arms."""
    with pytest.raises(SystemExit):
        claims.arguments([*look, *given])
    assert "give --out and --root" in capsys.readouterr().err


def test_an_arm_that_is_named_twice_runs_once(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(claims, "begin", lambda args, running, run, split: started.append(run))
    claims.run_all(SimpleNamespace(jobs=2), [tmp_path / "a-0", tmp_path / "b-0", tmp_path / "a-0"], "test")
    assert started == [tmp_path / "a-0", tmp_path / "b-0"]


def test_arms_begin_from_the_released_checkpoints_or_from_a_named_run(tmp_path):
    args = claims.arguments(["tools", "--root", str(tmp_path / "arms")])
    args.precision, claim = "32-true", claims.BY_NAME["tools"]
    run = claims.prepare(args, claim, "Python", 1)
    assert (run / "pretrain" / "model.safetensors").read_bytes() == (checkpoint.RELEASED / "pretrain" / "model.safetensors").read_bytes()
    (run / "test.json").touch()
    assert claims.prepare(args, claim, "Python", 1) == run and (run / "test.json").exists()
    args.problems = 7
    (run / "log.txt").touch()
    claims.prepare(args, claim, "Python", 1)
    assert not (run / "test.json").exists() and json.loads((run / "arm.json").read_text("utf-8"))["problems"] == 7, "it answered other questions"
    args.base, wanted = str(tmp_path / "s{seed}"), claims.settings_of(claim, "Python", "nano")
    with pytest.raises(claims.BadInput, match="other settings"):
        claims.prepare(args, claim, "Python", 1)
    with pytest.raises(claims.BadInput, match="s1 is no finished run"):
        claims.begins_from(args, wanted, 1)
    (run / "log.txt").unlink()
    args.base, args.problems = None, 9
    claims.prepare(args, claim, "Python", 1)                             # what never began may still change
    assert json.loads((run / "arm.json").read_text("utf-8"))["problems"] == 9
    args.base = str(tmp_path / "s{seed}")
    (tmp_path / "s1" / "sft").mkdir(parents=True)
    (tmp_path / "s1" / "sft" / "model.safetensors").touch()
    assert claims.begins_from(args, wanted, 1) == tmp_path / "s1"


def test_results_say_where_their_arms_began_and_what_stays_keeps_it(tmp_path, monkeypatch):
    claim = ledger.Claim("tiny", "tiny", "K2 1", "", "", shared={"steps": 0}, arms={"a": {}, "b": {}},
                         compares=(ledger.Compare("largest attention logit", "a", "b"),))
    monkeypatch.setattr(claims, "CLAIMS", [claim])
    out = tmp_path / "claims.json"
    args = claims.arguments(["--root", str(tmp_path / "arms"), "--out", str(out)])
    for arm, seed, base in (("a", 0, "results/checkpoints"), ("b", 0, "results/checkpoints"), ("a", 1, "runs/s{seed}"), ("b", 1, "runs/s{seed}")):
        (run := claims.folder_of(args, claim, arm, seed)).mkdir(parents=True)
        checkpoint.write_json(run / "arm.json", {"settings": asdict(Settings(steps=0)), "seed": seed, "precision": "32-true", "begins": base})
        checkpoint.write_json(run / "test.json", {"log max_logit": [1.0], "machine": "m", "precision": "32-true", "commit": "c"})
    for root in (args.root, tmp_path / "elsewhere"):                     # the second time what is published stays
        args.root, args.base = root, "what this call would have begun with"
        claims.write_results(args)
        assert json.loads(out.read_text("utf-8"))["begins"] == {"tiny": "results/checkpoints; runs/s{seed}"}


def test_what_is_published_stays_until_as_much_is_known_again():
    compares = ledger.Compare("m", "a", "b", "> 0"), ledger.Compare("m", "c", "b")
    claim = ledger.Claim("x", "x", "K2 1", "", "", compares=compares)
    gap = lambda arm, *seeds: {"claim": "x", "metric": "m", "arm": arm, "against": "b", "seeds": list(seeds)}
    others = [gap("a", 0, 1), gap("c", 0), gap("asked no more", 0, 1, 2), gap("a", 0, 1, 2) | {"claim": "y"}]
    assert claims.covers(claim, [gap("a", 0, 1, 2), gap("c", 0)], others) and claims.covers(claim, [gap("a", 0)], [])
    assert not claims.covers(claim, [gap("a", 0, 1)], others), "a comparison less"
    assert not claims.covers(claim, [gap("a", 0, 2), gap("c", 0)], others), "another seed"
    assert not claims.covers(claim, [], [])


@pytest.mark.parametrize("alike", [True, False], ids=["problems alike", "problems apart"])
def test_bootstrapped_rows_cover_the_truth_however_alike_problems_are_between_seeds(alike):
    rng, hits = np.random.default_rng(3), []
    for _ in range(400):
        hard = rng.normal(0, 1, (1, 200)) * alike
        gaps = 0.3 + rng.normal(0, 0.01, (3, 1)) + hard + rng.normal(0, 1, (3, 200)) * (not alike)
        half = 1.96 * gaps.std(1) / 200 ** 0.5
        _, low, high = intervals.bootstrapped({"mean": gaps.mean(), "values": gaps.mean(1), "problems": 200}, gaps.mean(1) - half, gaps.mean(1) + half)
        hits.append(low < 0.3 < high)
    assert np.mean(hits) > 0.93


def test_a_bootstrapped_row_of_several_seeds_knows_that_seeds_differ():
    """Three seeds whose own intervals are narrow and which disagree: no yes."""
    row = {"mean": 1 / 30, "values": [0.1, 0.1, -0.1], "problems": 500}
    mean, low, high = intervals.bootstrapped(row, [0.08, 0.08, -0.12], [0.12, 0.12, -0.08])
    assert mean == pytest.approx(1 / 30) and low < -0.1 and high > 0.15
    assert intervals.bootstrapped({"mean": 0.1, "values": [0.1], "problems": 500}, [0.07], [0.12]) == (0.1, 0.07, 0.12)


def test_stale_responses_wait_and_survive_a_checkpoint(tmp_path, tokenizer, monkeypatch):
    """rl.py --stale: the first iterations only sample; killed and continued equals uninterrupted."""
    from nanokimi import rollout
    from nanokimi.model import NanoKimi, save
    torch.manual_seed(0)
    tokenizer.save(tmp_path / "tokenizer")
    save(NanoKimi(PRESETS["micro"].model, tokenizer.media_pad), tmp_path / "sft")
    even = lambda problem, response, thinking=True: sum(t % 2 == 0 for t in response.ids) / max(1, len(response.ids))
    monkeypatch.setattr(rollout, "reward", even)
    monkeypatch.setattr(rl, "shorten", lambda *_: None)
    summary, calls = rl.summary, []

    def call(name):
        options = "--pool 30 --problems 4 --k 3 --max-new 8 --threads 1 --iterations 5 --stale 2 --save-every 0".split()
        monkeypatch.setattr(sys, "argv", ["rl.py", "--run", str(tmp_path), "--name", name, *options])
        rl.main()

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError
        return summary(*args)
    call("whole")
    monkeypatch.setattr(rl, "summary", killed)
    with pytest.raises(ZeroDivisionError):
        call("cut")
    monkeypatch.setattr(rl, "summary", summary)
    call("cut")
    steps = [json.loads(line)["steps"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps[:2] == [0, 0] and all(steps[2:])
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- the page --------------------------------------------------------------------------------------------------------------------------

def test_the_page_is_what_the_results_say(tmp_path):
    claims.write_docs(ROOT / "results", tmp_path / "CLAIMS.md")
    assert (tmp_path / "CLAIMS.md").read_text("utf-8") == (ROOT / "docs" / "CLAIMS.md").read_text("utf-8"), "python -m nanokimi.claims --docs"


def test_without_results_nothing_is_claimed(tmp_path):
    claims.write_docs(tmp_path, tmp_path / "CLAIMS.md")
    page = (tmp_path / "CLAIMS.md").read_text("utf-8")
    assert page.count("not run yet") >= 2 * len(ledger.CLAIMS) and "reproduced**" not in page.split("| claim |")[1]
