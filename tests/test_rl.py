"""rl.py end to end on a tiny model: learning, exact resume, partial rollouts, one clear sentence where nothing can be learned."""
import json
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import untrained
from safetensors.torch import load_file

import rl
from nanokimi import data, gains, learner, pages, rollout
from nanokimi.config import PRESETS
from nanokimi.engine import Conversation, Response
from nanokimi.errors import BadInput
from nanokimi.learner import Learner, muon
from nanokimi.model import load, save
from nanokimi.tokenizer import Tokenizer
from nanokimi.world.types import Problem


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run whose cold start never happened: random weights, a real tokenizer."""
    run = untrained(tmp_path_factory.mktemp("runs") / "tiny", "sft")
    (run / "run.json").write_text('{"seed": 7}')
    return run


def luck(problem, response, thinking=True):
    """A reward that is easy to raise and differs within groups: the share of even tokens."""
    return sum(token % 2 == 0 for token in response.ids) / max(1, len(response.ids))


def lucky(monkeypatch):
    """Rewards of 0 and 1 by luck; what earns anything counts as right."""
    monkeypatch.setattr(rollout, "reward", lambda *args: float(luck(*args) > 0.5))
    monkeypatch.setattr(rollout.verify, "correct", lambda *_: True)


def call(monkeypatch, base, name, *options):
    monkeypatch.setattr(sys, "argv", ["rl.py", "--run", str(base), "--name", name, "--pool", "60", "--problems", "6", "--k", "4", "--max-new", "12",
                                      "--threads", "1", *options])
    rl.main()
    return base / name


def rows(folder):
    timed = {"seconds", "rollout_s", "update_s", "rollout_tokens_s", "update_tokens_s", "handover_s"}
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("objective, options", [("k25", []), ("k15", ["--inner", "2"]), ("rest", []), ("grpo", [])])
def test_every_objective_raises_an_easy_reward(monkeypatch, base, objective, options):
    monkeypatch.setattr(rollout, "reward", luck)
    folder = call(monkeypatch, base, objective, "--objective", objective, "--iterations", "16", "--lr", "3e-2", "--decay", "0", "--problems", "12",
                  "--k", "8",
                  *options)
    rewards = [row["reward"] for row in rows(folder)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards
    assert all(0.1 < row["update_rms"] < 0.3 for row in rows(folder))
    assert (folder / "model.safetensors").exists() and "<h1>Iteration" in (folder / "trajectories.html").read_text("utf-8")


def test_all_processes_multiply_as_the_first_one_does(base, monkeypatch):
    """Each would time it for itself, and what they exchange has one dtype."""
    monkeypatch.setattr(learner.team, "gather", lambda mine: [torch.bfloat16, torch.float32])
    assert muon(load(base / "sft"), 1e-3).ns_dtype == torch.bfloat16


def test_a_saved_step_is_not_touched_again(base, tmp_path, monkeypatch):
    """It may be the only one, and a second Ctrl-C comes at any moment."""
    model = load(base / "sft")
    optimizer = muon(model, 1e-3)
    rl.checkpoint.save(tmp_path, model, optimizer, {"step": 3})
    monkeypatch.setattr(rl.checkpoint.os, "replace", lambda *_: pytest.fail("written again"))
    rl.checkpoint.save(tmp_path, model, optimizer, {"step": 3})
    assert [path.name for path in rl.checkpoint.checkpoints(tmp_path)] == ["step-000003"]


@pytest.mark.parametrize("objective, fresh", [("k15", True), ("k25", False)])
def test_k15_begins_every_iteration_with_a_fresh_optimizer(base, objective, fresh):
    model = load(base / "sft")
    learner, known = Learner(model, Tokenizer.load(base / "tokenizer"), muon(model, 1e-3), objective, inner=2), []

    def gradients(*_):
        known.append(len(learner.optimizer.state))                       # before each step
        for p in model.parameters():
            p.grad = torch.ones_like(p)
    learner._accumulate, learner.step = gradients, learner.optimizer.step
    for iteration in range(2):
        learner.update([None], [[0.0, 1.0]], iteration)
    assert known[0] == 0 < known[1] and known[3] > 0, "within an iteration it remembers"
    assert known[2] == (0 if fresh else known[1])


def test_success_is_tracked_and_the_curriculum_widens(monkeypatch, base):
    """T6: s_i comes from what was sampled; half of the curriculum lets in 0.2 + 0.8 / 2 of the pool."""
    monkeypatch.setattr(rollout, "reward", luck)
    monkeypatch.setattr(rollout.verify, "correct", lambda *_: True)
    known = [item.success for item in rl.read_pool(call(monkeypatch, base, "tracked", "--iterations", "2"))]
    assert set(known) <= {0.5, 0.75, 0.875} and known.count(0.75) + 2 * known.count(0.875) == 12, "two iterations of six problems, all solved"
    shares, drawn = [], []
    monkeypatch.setattr(rollout, "choose", lambda pool, number, rng, easiest, prioritised: shares.append(easiest) or drawn.append(prioritised) or [])
    args = SimpleNamespace(iterations=8, curriculum=0.5, seed=0, problems=4, uniform=False, k=2, max_new=4)
    for step in (0, 2, 4, 7):
        rl.new_groups(args, None, rl.Progress([], step))
    assert shares == pytest.approx([0.2, 0.6, 1.0, 1.0])
    args.uniform = True
    rl.new_groups(args, None, rl.Progress([], 0))
    assert drawn == [True] * 4 + [False]


def test_a_bf16_rollout_copy_reports_its_mismatch(monkeypatch, base):
    monkeypatch.setattr(rollout, "reward", luck)
    shared, copied = (rows(call(monkeypatch, base, f"rollout-{precision}", "--rollout", precision, "--iterations", "2"))
                      for precision in ("fp32", "bf16"))
    assert all(row["mismatch_max"] < 1e-3 for row in shared)
    assert all(0 < row["mismatch"] < 0.1 and row["mismatch_max"] == row["log_ratio_max"] for row in copied)
    assert copied[0]["mismatch"] > 10 * shared[0]["mismatch"] and copied[1]["mismatch"] < 0.1        # the second had the new weights


@pytest.mark.parametrize("options", [["--replay", "0.1"], ["--segment", "5"]])
def test_killed_and_continued_equals_uninterrupted(monkeypatch, base, options):
    monkeypatch.setattr(rollout, "reward", luck)
    tag = "-".join(options)
    whole = call(monkeypatch, base, f"whole{tag}", "--iterations", "5", *options)
    summary, seen = rl.summary, []

    def killed(*args):
        seen.append(1)
        if len(seen) == 4:
            raise ZeroDivisionError
        return summary(*args)
    monkeypatch.setattr(rl, "summary", killed)
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, base, f"cut{tag}", "--iterations", "5", "--save-every", "0", *options)
    monkeypatch.setattr(rl, "summary", summary)
    cut = call(monkeypatch, base, f"cut{tag}", "--iterations", "5", "--save-every", "0", *options)
    assert rows(cut) == rows(whole) and len(rows(cut)) == 5
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "--segment" not in options or any(row["unfinished"] for row in rows(whole)) and any(row["stale"] > 0 for row in rows(whole) if "stale" in row)


@pytest.mark.parametrize("options", [[], ["--segment", "5"]])
def test_ctrl_c_during_a_rollout_undoes_the_iteration(monkeypatch, base, options):
    """A terminal's Ctrl-C reaches the tools' processes, too: what was sampled while they died must not be learned from, nor be kept."""
    monkeypatch.setattr(rollout, "reward", luck)
    tag = "-".join(["ctrl-c", *options])
    whole, respond, asked = call(monkeypatch, base, f"whole-{tag}", "--iterations", "4", *options), rollout.respond, []

    def interrupted(engine, groups, *more):
        respond(engine, groups, *more)
        asked.append(1)
        if len(asked) == 3:
            for group in groups:
                for talk in group.talks:
                    talk.response.logprobs[:] = [0.0] * len(talk.response.logprobs)
            signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(rollout, "respond", interrupted)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, base, f"cut-{tag}", "--iterations", "4", *options)
    assert stop.value.code == 130 and (base / f"cut-{tag}" / "step-000002").is_dir()
    monkeypatch.setattr(rollout, "respond", respond)
    cut = call(monkeypatch, base, f"cut-{tag}", "--iterations", "4", *options)
    assert rows(cut) == rows(whole)
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_finished_is_not_done_again(monkeypatch, base, capsys):
    """Killed between RL and the closing stage: only the closing stage is done; after that nothing."""
    lucky(monkeypatch)
    shorten = rl.shorten
    monkeypatch.setattr(rl, "shorten", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, base, "twice", "--iterations", "2")
    monkeypatch.setattr(rl, "shorten", shorten)
    monkeypatch.setattr(rl, "improve", lambda *_: 1 / 0)
    call(monkeypatch, base, "twice", "--iterations", "2")
    before = (base / "short-twice" / "model.safetensors").stat().st_mtime_ns
    call(monkeypatch, base, "twice", "--iterations", "2")
    assert (base / "short-twice" / "model.safetensors").stat().st_mtime_ns == before
    assert "another --name trains again" in " ".join(capsys.readouterr().out.split())


def test_a_hopeless_start_is_one_sentence(monkeypatch, base, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, base, "hopeless", "--iterations", "20")
    assert stop.value.code == 2 and "earned the same (in the last one: nothing)" in " ".join(capsys.readouterr().err.split())
    assert len(rows(base / "hopeless")) == 5


def test_a_run_that_learned_once_is_never_called_hopeless():
    learned, never = rl.Progress([]), rl.Progress([])
    for steps in (0, 0, 0, 0, 1, *[0] * 20):
        rl.hopeless({"reward": 1.0, "steps": steps}, learned)
    with pytest.raises(BadInput, match="all responses to a problem earned the same, so"):
        for _ in range(5):
            rl.hopeless({"reward": 1.0, "steps": 0}, never)
    assert (learned.barren, never.barren) == (None, 5)


@pytest.mark.parametrize("options, sentence", [(["--k", "1"], "nothing to compare it with"), (["--run", "nowhere"], "no finished stage sft")])
def test_what_cannot_work_is_said_before_it_starts(monkeypatch, base, capsys, options, sentence):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, base, "never", *options)
    assert stop.value.code == 2 and sentence in " ".join(capsys.readouterr().err.split())


def test_other_settings_do_not_continue_a_run(monkeypatch, base, capsys):
    monkeypatch.setattr(rollout, "reward", luck)
    call(monkeypatch, base, "settled", "--iterations", "1")
    with pytest.raises(SystemExit):
        call(monkeypatch, base, "settled", "--iterations", "1", "--lr", "1e-5")
    assert "was started with lr 0.0002, not 1e-05" in " ".join(capsys.readouterr().err.split())


def test_no_step_without_a_difference(monkeypatch, base):
    """MuonClip would move the weights as far for a zero advantage as for any other."""
    monkeypatch.setattr(rollout, "reward", lambda *_: 1.0)
    before = load_file(base / "sft" / "model.safetensors")
    monkeypatch.setattr(rl, "hopeless", lambda row, progress: None)
    monkeypatch.setattr(rl, "shorten", lambda *_: None)
    folder = call(monkeypatch, base, "same", "--iterations", "2")
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before) and all(row["steps"] == 0 for row in rows(folder))


def test_schedules_of_the_loop(monkeypatch, base):
    """The learning rate falls by --decay, the length penalty begins after --length-warmup, in the loop itself."""
    monkeypatch.setattr(rollout, "reward", luck)
    weights, factors, add = [], [], rollout.with_length
    monkeypatch.setattr(rollout, "with_length", lambda group, weight: weights.append(weight) or add(group, weight))
    monkeypatch.setattr(learner.MuonClip, "set_schedule", lambda self, factor: factors.append(factor))
    monkeypatch.setattr(rl, "shorten", lambda *_: None)
    call(monkeypatch, base, "schedules", "--iterations", "3", "--length-warmup", "2", "--length-penalty", "0.1", "--decay", "0.6")
    assert factors == pytest.approx([1.0, 0.8, 0.6]) and weights == [0.0] * 12 + [0.1] * 6


@pytest.mark.parametrize("name, kind", [("muon", "MuonClip"), ("adamw", "AdamW")])
def test_the_optimizer_is_the_one_that_was_asked_for(base, name, kind):
    args = SimpleNamespace(optimizer=name, lr=1e-3, objective="k25", temperature=1.0, inner=1, step_problems=4, replay=0.0, seed=0)
    engine = SimpleNamespace(model=load(base / "sft"), tokenizer=None)
    assert type(rl.make_learner(args, engine, "32-true").optimizer).__name__ == kind


def test_a_step_of_rl_clips_and_leaves_the_balance_alone(base):
    tokenizer, model = Tokenizer.load(base / "tokenizer"), load(base / "sft").train()
    for layer in model.language.layers:
        layer.attn.q_b.weight.data *= 1e4                                # logits far above the limit
    biases = lambda: [layer.moe.router.e_score_correction_bias.clone() for layer in model.language.layers if layer.moe is not None]
    teaches, norms, logits, before = Learner(model, tokenizer, muon(model, 0.0, torch.float32)), [], [], biases()
    batch, _ = data.Batches("sft", tokenizer, PRESETS["micro"].model.vision, 5, 16, 384, 1).shard(0, 0)
    step = teaches.optimizer.step
    teaches.optimizer.step = lambda: norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])) or step()
    for _ in range(3):                                                   # heads of one layer change what the next one reads
        (100 * model.loss(batch)[0]).backward()
        logits.append(max(layer.attn.max_logits.max().item() for layer in model.language.layers))
        teaches.step()
    assert logits[0] > 100 and logits[-1] < 31 and all(norm <= 1.001 for norm in norms)
    assert all(torch.equal(a, b) for a, b in zip(before, biases()))


def test_the_closing_stage_samples_what_is_better_solved(monkeypatch, base, tmp_path):
    pool = rollout.make_pool(60, 0.5, 0)
    for i, item in enumerate(pool):
        item.success = i / 60
    source = tmp_path / "rl"
    save(load(base / "sft"), source)
    rl.checkpoint.write_json(source / "pool.json", [vars(item) for item in pool])
    asked = []
    monkeypatch.setattr(rollout, "sample", lambda engine, items, *_: asked.extend(items) or [])
    rl.shorten(SimpleNamespace(seed=0, k=4, max_new=8, temperature=1.0), base, source, tmp_path / "short", problems=10)
    assert len(asked) == 10 and min(item.success for item in asked) >= 40 / 60, "of the twenty that are solved most often"


def test_a_length_reward_is_added_by_weight():
    talks = [SimpleNamespace(response=Response(sampled=[True] * n)) for n in (4, 8, 6)]
    group = rollout.Group(None, talks, False, rewards=[1.0, 1.0, 0.0], right=[True, True, False])
    assert rollout.with_length(group, 0.0) == [1.0, 1.0, 0.0]
    assert rollout.with_length(group, 0.2) == pytest.approx([1.1, 0.9, 0.0])


def test_the_page_shows_text_as_text_and_marks_what_the_tool_said(base, tmp_path):
    tokenizer = Tokenizer.load(base / "tokenizer")
    said, forced = tokenizer.encode("<script>said"), tokenizer.encode("<i>forced")
    talk = Conversation(tokenizer.render_chat([{"role": "user", "content": "x"}], thinking=True, generate=True), (0,), 9)
    talk.response.ids, talk.response.sampled = said + forced, [True] * len(said) + [False] * len(forced)
    problem = Problem("perception", "text", ("<script>told",), "<script>asked", "<script>wanted")
    group = rollout.Group(problem, [talk], False, rollout.Item("perception", "text", 1), [1.0], [True])
    pages.write(tmp_path / "page.html", [group], tokenizer, 1)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<script>" not in page and "<i>" not in page and page.count("&lt;script&gt;") == 4 and "<span>&lt;i&gt;forced</span>" in page


def test_gains_compares_the_stages_and_writes_where_its_numbers_come_from(monkeypatch, base, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gains", str(base), "--problems", "3", "--threads", "1"])
    with pytest.raises(SystemExit) as stop:
        gains.main()
    assert stop.value.code == 2 and "has no finished stage rl: python rl.py" in capsys.readouterr().err
    lucky(monkeypatch)
    call(monkeypatch, base, "rl", "--iterations", "2")
    out = tmp_path / "rl.json"
    monkeypatch.setattr(sys, "argv", ["gains", str(base), "--split", "test", "--problems", "3", "--threads", "1", "--out", str(out)])
    gains.main()
    content = json.loads(out.read_text("utf-8"))
    rows = {row["name"]: row["mean"] for row in content["rows"]}
    assert {"rl_visual_gain", "rl_visual_margin_change", "rl_tool_solved", "rl_saving", "sft_visual", "rl_visual", "short_visual"} <= rows.keys()
    assert rows["rl_visual_gain"] == pytest.approx((rows["rl_visual"] - rows["sft_visual"]) / (1 - rows["sft_visual"]))
    assert content["seeds"] == [7] and content["iterations"] == [2] and content["split"] == "test"        # of the training, not of RL
    asked = {row["name"]: row["problems"] for row in content["rows"]}
    assert asked["sft_caption"] == 3 and asked["rl_visual_gain"] is None, "pooled over rows: no single number"
    assert "gains" in (base / "test_reads.jsonl").read_text("utf-8")


def test_replay_teaches_text_while_rl_teaches_nothing(monkeypatch, base):
    """With a reward that is luck alone, the loss on the cold start's documents must fall with --replay."""
    monkeypatch.setattr(rollout, "reward", luck)
    monkeypatch.setattr(rl, "shorten", lambda *_: None)
    tokenizer = Tokenizer.load(base / "tokenizer")
    batch, _ = data.Batches("sft", tokenizer, PRESETS["micro"].model.vision, 5, 32, 384, 1).shard(0, 0)
    losses = []
    for weight in ("0", "5"):
        folder = call(monkeypatch, base, f"replay{weight}", "--iterations", "6", "--replay", weight, "--lr", "3e-3", "--decay", "0")
        with torch.no_grad():
            losses.append(load(folder).loss(batch)[0].item())
    assert losses[1] < losses[0] - 0.3


@pytest.mark.parametrize("iterations, halves", [(5, [2, 3]), (4, [2, 2]), (None, [None, None])])
def test_a_flywheel_has_the_budget_of_plain_rl(monkeypatch, base, iterations, halves):
    seen = []
    monkeypatch.setattr(rl, "settle", lambda *_: None), monkeypatch.setattr(rl, "recycle", lambda *_: None)
    monkeypatch.setattr(rl, "reinforce", lambda args, run: seen.append(args))
    monkeypatch.setattr(sys, "argv", ["rl.py", "--minutes", "20", *(["--iterations", str(iterations)] if iterations else [])])
    rl.flywheel(rl.arguments(), base)
    assert [args.iterations for args in seen] == halves and [args.minutes for args in seen] == [10, 10]


def test_responses_of_earlier_iterations_are_stale(monkeypatch):
    def group(*versions):
        response = Response([1], [-1.0], [True], list(versions), stop="end")
        return SimpleNamespace(responses=[response], rewards=[1.0], item=SimpleNamespace(modality="text", ability="code"), solved=lambda: 1.0)
    stats = {"zero_variance": 0.0, "log_ratio": 0.0, "log_ratio_max": 0.0, "tokens": 1, "steps": 1}
    shares = [rl.summary([group(*versions), group(*versions)], [], stats, (0, 1, 2), 4)["stale"] for versions in ([4, 4], [3, 4], [0, 0])]
    assert shares == [0, 0.5, 1], "with --stale every token is of an earlier policy"


def test_newton_schulz_has_the_precision_that_is_asked_for(monkeypatch, base, capsys):
    monkeypatch.setattr(rollout, "reward", luck)
    monkeypatch.setattr(rl.plan, "faster_precision", lambda: 1 / 0)
    folder = call(monkeypatch, base, "asked", "--iterations", "1", "--precision", "bf16-mixed")
    assert json.loads((folder / "rl.json").read_text("utf-8"))["precision"] == "bf16-mixed"
    with pytest.raises(SystemExit):
        call(monkeypatch, base, "asked", "--iterations", "1", "--precision", "32-true")
    assert "started with precision bf16-mixed, not 32-true" in " ".join(capsys.readouterr().err.split())


def test_flywheel_recycles_successes(monkeypatch, base, capsys):
    monkeypatch.setattr(rollout, "reward", lambda problem, response, thinking=True: float(response.ids[0] % 2 == 0))
    monkeypatch.setattr(rollout.verify, "correct", lambda *_: True)
    folder = call(monkeypatch, base, "wheel", "--flywheel", "--iterations", "4")
    assert len(rows(base / "wheel-first")) == len(rows(folder)) == 2 and not (base / "short-wheel-first").exists()
    start, taught, end = (load_file(base / stage / "model.safetensors") for stage in ("sft", "wheel-rft", "wheel"))
    head = "language.head.weight"
    assert not torch.equal(start[head], taught[head]) and not torch.equal(taught[head], end[head])
    assert json.loads((folder / "rl.json").read_text("utf-8"))["start"] == "wheel-rft" and "successes of" in capsys.readouterr().out
    before = (base / "wheel-rft" / "model.safetensors").stat().st_mtime_ns
    call(monkeypatch, base, "wheel", "--flywheel", "--iterations", "4")
    assert (base / "wheel-rft" / "model.safetensors").stat().st_mtime_ns == before
