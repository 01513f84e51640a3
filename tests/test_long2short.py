"""long2short: what is learned from samples, the methods, the command, the measurement."""
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from test_rl import base                                            # noqa: F401  (a fixture)
from test_rollout import ENGINE, ITEMS, TOK, engine, finished
import rl
import sample as chat
from nanokimi import data, hf, lengths, long2short, report
from nanokimi.engine import Response
from nanokimi.errors import BadInput
from nanokimi.intervals import interval
from nanokimi.learner import Learner, muon
from nanokimi.long2short import budgets_of, merge, preferences, shortest, within_budget
from nanokimi.policy import dpo
from nanokimi.rollout import Group, Item, with_length
from nanokimi.tokenizer import Tokenizer
from nanokimi.world.types import Image, Problem

RNG = lambda seed=0: np.random.default_rng(seed)


def group(*responses):
    """(tokens, reward) of each response."""
    talks = [SimpleNamespace(response=Response(sampled=[True] * n + [False] * 3)) for n, _ in responses]     # forced tokens do not count
    rewards = [r for _, r in responses]
    return Group(None, talks, False, Item("a", "text", 1), rewards, [r == 1.0 for r in rewards])


# ---- what is learned from samples ----------------------------------------------------------------------------------------------------------

def test_shortest_is_right_and_shortest():
    some = group((5, 0.0), (9, 1.0), (7, 1.0), (6, 0.9))
    assert shortest(some, RNG()) is some.talks[2]
    assert shortest(group((5, 0.0), (6, 0.99)), RNG()) is None


def test_ties_among_shortest_are_broken_by_seed():
    some = group((7, 1.0), (7, 1.0), (7, 1.0), (8, 1.0))
    picks = [shortest(some, RNG(seed)) for seed in range(40)]
    assert {id(p) for p in picks} == {id(t) for t in some.talks[:3]}
    assert picks == [shortest(some, RNG(seed)) for seed in range(40)]


def test_preferences_take_wrong_and_longer_and_right_and_much_longer():
    some = group((10, 1.0), (15, 1.0), (14, 1.0), (11, 0.0), (10, 0.0), (5, 0.0), (40, 0.5))
    pairs = preferences(some, RNG())
    assert all(chosen is some.talks[0] for chosen, _ in pairs)
    assert [some.talks.index(rejected) for _, rejected in pairs] == [1, 3, 6]
    assert preferences(group((10, 0.0), (20, 0.0)), RNG()) == [] and preferences(group((10, 1.0)), RNG()) == []


def test_length_penalty_and_budgets_as_rewards():
    some = group((10, 1.0), (20, 1.0), (30, 0.0))
    assert with_length(some, 0.5) == [1.25, 1.0, -0.25]
    assert with_length(group((10, 1.0), (10, 0.0)), 0.5) == [1.0, 0.0]
    budgets = budgets_of([some], percentile=0)
    assert budgets == {1: 10.0}
    alternating, rigid = within_budget(budgets, phase=2), within_budget(budgets, phase=10 ** 9)
    assert [alternating(some, i)[1] for i in range(4)] == [0.0, 0.0, 1.0, 1.0] and [rigid(some, i)[1] for i in range(4)] == [0.0] * 4
    assert budgets_of([group((10, 0.0))]) == {1: None}


# ---- DPO -------------------------------------------------------------------------------------------------------------------------------------

def test_dpo_closed_form():
    a, b, c, d = (torch.randn(5, generator=torch.Generator().manual_seed(i)) for i in range(4))
    expected = torch.log1p(torch.exp(-0.3 * ((a - c) - (b - d))))
    torch.testing.assert_close(dpo(a, b, c, d, 0.3), expected)
    assert dpo(a, b, a, b, 0.3).allclose(torch.tensor(0.5).log().neg().expand(5))


def test_reference_log_probabilities_come_from_the_engine():
    """What the engine recorded is what a training forward of the same weights gives: DPO starts at log 2."""
    learner = Learner(ENGINE.model, TOK, None)
    talks = [talk for done in finished() for talk in done.talks]
    documents, recorded = zip(*map(long2short.with_reference, talks))
    with torch.no_grad():
        torch.testing.assert_close(learner.sequence_logprobs(list(documents)), torch.tensor(recorded), atol=1e-3, rtol=1e-4)


def test_a_dpo_step_prefers_the_chosen():
    fresh = engine()
    learner = Learner(fresh.model.train(), TOK, muon(fresh.model, 1e-3))
    groups = finished(ITEMS[:2], k=4)
    pairs = [tuple(map(long2short.with_reference, (g.talks[0], g.talks[1]))) for g in groups]
    losses = [learner.prefer(pairs, beta=0.1) for _ in range(3)]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3) and losses[2] < losses[1] < losses[0]


def test_dpo_equals_trl(base, tmp_path):
    """TRL's trainer on two exported models (policy and reference) gives our loss on the same tokens."""
    trl, transformers = pytest.importorskip("trl"), pytest.importorskip("transformers")
    from datasets import Dataset
    from nanokimi.model import NanoKimi, load
    tokenizer = Tokenizer.load(base / "tokenizer", 8)
    ours = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = NanoKimi(load(base / "sft").config, tokenizer.media_pad)
        for p in model.language.head.parameters():
            torch.nn.init.normal_(p, std=0.3)
        hf.write_folder(model, tokenizer, tmp_path / str(seed), text_only=True)
        ours.append(model.eval())
    policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(seed)) for seed in (1, 2))
    rows = Dataset.from_list([{"prompt": f"what is {i} + 1?", "chosen": f" {i + 1}", "rejected": f" plan: add. {i} + 1 = {i}"} for i in range(4)])
    args = trl.DPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, beta=0.3, report_to=[], use_cpu=True, bf16=False)
    trainer = trl.DPOTrainer(policy, reference, args=args, train_dataset=rows,
                             processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "1"))
    batch = next(iter(trainer.get_train_dataloader()))
    policy.eval()
    expected = trainer.compute_loss(policy, batch).item()
    sums = [sums_of(model, batch).chunk(2) for model in ours]
    assert dpo(*sums[0], *sums[1], 0.3).mean().item() == pytest.approx(expected, abs=1e-4)
    assert abs(expected - np.log(2)) > 0.05                          # the two models differ, so the number says something


@torch.no_grad()
def sums_of(model, batch):
    """Log-probabilities of the completions in TRL's batch (chosen first, then rejected), by our model."""
    ids, mask = batch["input_ids"], batch["completion_mask"].bool()
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits = model.language.head(model.language(model.embed(ids), positions, batch["attention_mask"].long()))
    picked = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return (picked * mask[:, 1:]).sum(1)


# ---- merging, teaching -------------------------------------------------------------------------------------------------------------------

def test_merging():
    a, b = engine(1).model, engine(2).model
    before, other = ({k: v.clone() for k, v in m.state_dict().items()} for m in (a, b))
    same = merge(a, engine(1).model).state_dict()
    assert all(torch.equal(same[k], before[k]) for k in before)
    mean = merge(a, b).state_dict()
    assert all(torch.allclose(mean[k], (before[k] + other[k]) / 2, atol=1e-6) for k in before)
    assert all(torch.equal(b.state_dict()[k], other[k]) for k in other)


def taught(style, seen, monkeypatch):
    """The documents of one step of teaching, as text, longest thoughts included."""
    documents = []
    monkeypatch.setattr(Learner, "imitate", lambda learner, given: documents.extend(given))
    long2short.teach(Learner(ENGINE.model, TOK, muon(ENGINE.model, 1e-4)), style, 1, 0, seen, texts=60)
    return [TOK.decode(document.ids) for document in documents]


def test_both_styles_see_the_same_chats(monkeypatch):
    seen = [Problem("counting", "image", (Image(np.zeros((32, 32, 3), np.uint8)),), "how many?", str(n), f"from left to right: {n}. all: {n}.")
            for n in range(20)]
    chats = {style: taught(style, seen, monkeypatch) for style in ("long", "brief")}
    part = lambda text, start, end: text.partition(start)[2].partition(end)[0]
    asked = {style: [part(text, "<|im_user|>", "<|im_end|>") for text in texts] for style, texts in chats.items()}
    assert asked["long"] == asked["brief"] and sum("<|media_pad|>" in turn for turn in asked["long"]) == 12
    thought = {style: sum(len(part(text, "<think>", "</think>")) for text in texts) for style, texts in chats.items()}
    assert thought["long"] > 1.5 * thought["brief"], thought


def test_teaching_about_pictures_takes_what_the_base_said_and_was_right(monkeypatch):
    said = lambda thought, answer: SimpleNamespace(response=SimpleNamespace(parsed={"thinking": f" {thought} ", "content": f" {answer}"}))
    problems = [Problem("counting", "image", (), "how many?", answer, "the true steps.") for answer in ("1", "2")]
    groups = [Group(problems[0], [said("no", "3"), said("my steps.", "1")], False, right=[False, True]),
              Group(problems[1], [said("no", "3")], False, right=[False])]
    asked = []
    monkeypatch.setattr(long2short.rollout, "sample", lambda engine, pool, *rest: asked.extend(pool) or groups)
    kept, = long2short.own_answers(ENGINE, 30, 0)
    assert (kept.reasoning, kept.answer, kept.question) == ("my steps.", "1", "how many?")
    assert len(asked) == 30 and all(item.modality != "text" and item.ability != "code" for item in asked)


def test_chats_go_where_the_model_is(monkeypatch):
    moved, model = [], ENGINE.model
    monkeypatch.setattr(data.Batch, "to", lambda batch, device: moved.append(device) or batch)
    monkeypatch.setattr(Learner, "step", lambda learner: None)
    long2short.teach(Learner(model, TOK, muon(model, 1e-4)), "long", 1, 0, [], texts=2)
    model.zero_grad()
    assert moved == [model.language.head.weight.device]


def test_sums_look_at_their_last_step_again():
    problem = Problem("reasoning", "text", (), "what is 1 + 2 + 3?", "6", "1 + 2: so 3. 3 + 3: so 6.")
    seen = {data.checked_thinking(problem, RNG(seed)) for seed in range(60)}
    assert all(thought.count("1 + 2") == 1 for thought in seen) and {thought.count("3 + 3") for thought in seen} == {1, 2, 3}


def test_checked_thinking_ends_in_what_it_is_about():
    problem = Problem("counting", "text", (), "how many?", "2", "from left to right: red star 1, ring, blue star 2. stars: 2.")
    seen = {data.checked_thinking(problem, RNG(seed)) for seed in range(60)}
    looks = {thought.count("check:") + thought.count("wait, once more:") for thought in seen}
    assert looks == {0, 1, 2} and any("wait, once more" in thought for thought in seen)
    assert {thought.partition(" ")[0] for thought in seen} == {"plan:", "from"} and all(thought.endswith("stars: 2.") for thought in seen)


# ---- the command -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shortened(base):
    """All methods once, on a tiny model, as a user calls them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lengths, "ROWS", {"scene_text": "text", "count": "pictures"})
        patch.setattr(long2short, "LONGEST", 24), patch.setattr(lengths, "LONGEST", 24)
        patch.setattr(lengths, "report", lambda run: None)
        patch.setattr(sys, "argv", ["rl.py", "long2short", "--run", str(base), "--problems", "6", "--iterations", "2", "--sft-steps", "2",
                                    "--threads", "1"])
        rl.main()
    return base


def test_every_stage_is_a_checkpoint_like_any_other(shortened, capsys, monkeypatch):
    for stage in lengths.STAGES:
        assert json.loads((shortened / stage / "long2short.json").read_text("utf-8"))["note"]
    chat.main(["hi", "--run", str(shortened), "--stage", "l2s-dpo", "--plain", "--max-new", "3"])
    with pytest.raises(SystemExit, match="2"):
        chat.main(["hi", "--run", str(shortened), "--stage", "none", "--plain"])
    assert "no finished stage none" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["rl.py", "--run", str(shortened), "--start", "l2s-merge", "--name", "after", "--iterations", "1", "--pool", "28",
                                      "--problems", "4", "--k", "2", "--max-new", "4", "--threads", "1"])
    rl.main()
    assert (shortened / "after" / "model.safetensors").exists()
    assert chat.newest_stage(shortened).name != "l2s-rigid"                  # comparisons are asked for by name


def test_what_is_there_is_not_made_again(shortened, monkeypatch, capsys):
    written = {stage: (shortened / stage / "model.safetensors").stat().st_mtime_ns for stage in lengths.STAGES}
    monkeypatch.setattr(sys, "argv", ["rl.py", "long2short", "--run", str(shortened), "--problems", "6", "--iterations", "2", "--sft-steps", "2",
                                      "--threads", "1"])
    monkeypatch.setattr(lengths, "report", lambda run: None)
    rl.main()
    assert written == {stage: (shortened / stage / "model.safetensors").stat().st_mtime_ns for stage in lengths.STAGES}


@pytest.mark.parametrize("options, sentence", [(["--seed", "5"], "long was made with seed 0, not 5"),
                                               (["--iterations", "3"], "l2s-rl was made with iterations 2, not 3"),
                                               (["--method", "toggle", "--phase", "9"], "l2s-toggle was made with phase 4, not 9")])
def test_other_settings_do_not_mix(shortened, monkeypatch, capsys, options, sentence):
    monkeypatch.setattr(sys, "argv", ["rl.py", "long2short", "--run", str(shortened), "--problems", "6", "--iterations", "2", "--sft-steps", "2",
                                      "--threads", "1", *options])
    with pytest.raises(SystemExit) as stop:
        rl.main()
    assert stop.value.code == 2 and sentence in " ".join(capsys.readouterr().err.split())


def test_a_method_is_of_the_long_model_that_is_there(shortened, monkeypatch):
    """long and brief deleted and made anew, what came from the old ones left."""
    monkeypatch.setattr(long2short, "think", lambda *_: None)
    args = long2short.arguments(["--problems", "6", "--iterations", "2", "--sft-steps", "2", "--seed", "5"])
    with pytest.raises(BadInput, match="l2s-merge was made with seed 0, not 5"):
        long2short.run_methods(shortened, args)


def test_intervals_of_the_picture_know_that_trainings_differ():
    """Three seeds that answered the same problems are not three times as many problems."""
    drawn, ax = [], SimpleNamespace(errorbar=lambda x, y, bars, **_: drawn.append(bars), plot=None)
    cards = [{"stages": {"long": lengths.Answers([float(i < right) for i in range(100)], [9] * 100)}} for right in (50, 60, 70)]
    lengths.frontier(ax, cards, {"stages": {"long": sum((card["stages"]["long"] for card in cards), lengths.Answers())}, "sweep": {}}, lambda rows: rows)
    (low,), (high,) = drawn[0]
    wilson = report.wilson_interval(180, 300)
    assert low == pytest.approx(high) and low + high > 2 * (wilson[1] - wilson[0])


def test_the_pool_is_half_text():
    pool = long2short.make_pool(48, 0)
    assert sum(item.modality == "text" for item in pool) == 24 and all(item.ability != "code" for item in pool)


def test_measurement(shortened, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lengths, "ROWS", {"scene_text": "text", "count": "pictures"})
    monkeypatch.setattr(lengths, "LONGEST", 24), monkeypatch.setattr(lengths, "CHOICE", 4)
    for argv in (["lengths", str(shortened), "--problems", "4", "--out", str(tmp_path / "long2short.json")],):
        monkeypatch.setattr(sys, "argv", argv)
        lengths.main()
    rows = {row["name"]: row["mean"] for row in json.loads((tmp_path / "long2short.json").read_text("utf-8"))["rows"]}
    content = json.loads((tmp_path / "long2short.json").read_text("utf-8"))
    assert content["split"] == "val" and content["seeds"] == [7]
    asked = {row["name"]: row["problems"] for row in content["rows"]}
    assert asked["long_count"] == 4 and asked["l2s-dpo_scene_text"] == 4 and asked["long_acc"] == 8 and asked["l2s_token_saving"] == 8
    assert rows["long_acc"] == pytest.approx((rows["long_count"] + rows["long_scene_text"]) / 2)
    assert (tmp_path / "long2short.png").stat().st_size > 5000


def test_a_cap_ends_thinking_and_forces_an_answer(shortened):
    tiny = lengths.engine_of(shortened, lengths.load(shortened / "long"))
    problems = lengths.exam.exam("scene_text", "val", 3)
    answers = lengths.ask_capped(tiny, problems, 5)
    assert len(answers.hits) == 3 and max(answers.tokens) <= 6              # five tokens of thinking, and </think>


def test_more_tokens_go_to_checking_where_thinking_would_end(shortened, monkeypatch):
    tiny = lengths.engine_of(shortened, lengths.load(shortened / "long"))
    end, heads = tiny.tokenizer.end_think, []
    said = [Response(ids=[7, 8, end, 9], sampled=[True] * 4, parsed={}), Response(ids=[7, 8, 9], sampled=[True] * 3, parsed={})]
    monkeypatch.setattr(lengths, "ask_chat", lambda *_, **__: said)
    monkeypatch.setattr(lengths, "go_on", lambda engine, problems, given, most: heads.extend(given))
    lengths.ask_for_more(tiny, [])
    assert heads == [[7, 8, *tiny.tokenizer.encode(" check:")], [7, 8]]


def test_gains_are_paired_by_problem():
    """Problems that both solve, or neither, count as 0; results have the interval over seeds and problems."""
    first, between, second = (lengths.Answers([True] * right + [False] * (100 - right), [9] * 100) for right in (60, 50, 40))
    brief, capped = (lengths.Answers([True] * right + [False] * (100 - right), [tokens] * 100) for right, tokens in ((45, 3), (10, 4)))
    gaps = lengths.gained(first, second)
    assert gaps.tolist() == [0.0] * 40 + [1.0] * 20 + [0.0] * 40 and lengths.gained(second, first).tolist() == (-gaps).tolist()
    cards = [{"stages": {stage: {"arithmetic": a} for stage, a in {"long": second, "brief": brief, "l2s-merge": merged + lengths.Answers(), "l2s-toggle": brief,
                                                                    "l2s-rigid": brief}.items()},
              "caps": {0.5: {"arithmetic": capped}}, "more": {"l2s-toggle": {"arithmetic": first}, "l2s-rigid": {"arithmetic": second}}} for merged in (first, between)]
    rows = {row["name"]: row for row in lengths.rows_over_seeds(cards, "l2s-merge", 100)}
    row = rows["l2s-merge_vs_long"]
    assert row["values"] == [0.2, 0.1] and (row["mean"], row["low"], row["high"]) == pytest.approx(interval([gaps, lengths.gained(between, second)]))
    short = lengths.rows_of(cards[0] | {"stages": cards[0]["stages"] | {"l2s-merge": {"arithmetic": lengths.Answers(first.hits, [6] * 100)}}}, "l2s-merge")
    assert short["l2s_token_saving"] == pytest.approx(1 / 3) and short["l2s_tokens_over_short"] == pytest.approx(2)
    assert short["l2s_acc_drop"] == pytest.approx(-0.2) and short["l2s_vs_short"] == pytest.approx(0.15) and short["long_half_drop"] == pytest.approx(0.3)
    assert (short["toggle_lift"], short["rigid_lift"], short["toggle_lift_gap"]) == pytest.approx((0.15, -0.05, 0.2))
    assert "low" not in rows["l2s_acc_drop"] and row["problems"] == 500 and rows["l2s-merge_arithmetic"]["problems"] == 100


def test_best_saves_most_among_those_that_keep_accuracy():
    make = lambda hits, tokens: {"row": lengths.Answers([True] * hits + [False] * (100 - hits), [tokens] * 100)}
    stages = {"long": make(80, 100), "brief": make(70, 50), "l2s-merge": make(79, 70), "l2s-dpo": make(78, 60), "l2s-rl": make(77, 40)}
    assert lengths.best_method(stages) == "l2s-dpo"
    assert lengths.best_method(stages | {"l2s-merge": make(60, 9), "l2s-dpo": make(70, 60)}) == "l2s-rl"
