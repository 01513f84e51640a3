"""Rollouts: the pool, sampling by success, rewards that cannot be cheated, training batches, unfinished groups in a checkpoint."""
import json

import numpy as np
import pytest
import torch

from nanokimi import rollout
from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig
from nanokimi.engine import Engine, Response
from nanokimi.learner import Learner, muon
from nanokimi.model import NanoKimi
from nanokimi.policy import Samples, k25
from nanokimi.rollout import Item, choose, freeze, make_pool, micro_batches, reward, start, thaw
from nanokimi.tokenizer import Tokenizer
from nanokimi.world.types import Problem

TOK = Tokenizer.train([f"what colour is star {i}? red, blue, 1 2 3 import print img" for i in range(60)], 300)


def engine(seed=0):
    torch.manual_seed(seed)
    language = LanguageConfig(vocab=TOK.vocab_size, dim=32, layers=2, heads=2, q_lora=24, kv_lora=16, nope=8, rope=8, v_dim=8, dense_ffn=48,
                              experts=4, expert_ffn=24, context=1024, init_std=0.3)
    return Engine(NanoKimi(ModelConfig(VisionConfig(dim=32, layers=1, heads=2, mlp=48), language), TOK.media_pad).eval(), TOK)


ENGINE = engine()
ITEMS = [Item("perception", "image", 1), Item("reasoning", "text", 2), Item("video", "video", 3)]


def finished(items=ITEMS, k=3, max_new=10, temperature=1.0):
    groups = [start(ENGINE, item, k, max_new, (5, n)) for n, item in enumerate(items)]
    done, rest = rollout.carry_on(ENGINE, groups, temperature)
    assert not rest
    return done


# ---- the pool ------------------------------------------------------------------------------------------------------------------------

def test_the_pool_has_the_visual_share_and_every_ability():
    pool = make_pool(100, 0.6, seed=3)
    assert sum(item.modality != "text" for item in pool) == 60 and len({item.seed for item in pool}) == 100
    assert {(item.ability, item.modality) for item in pool} == set(rollout.MAKERS)


def test_a_problem_is_made_again_from_its_recipe():
    for item in make_pool(26, 0.6, seed=0):
        a, b = item.problem(), item.problem()
        assert (a.question, a.answer, a.ability, a.modality) == (b.question, b.answer, item.ability, item.modality)
        assert not ("capital" in a.question and a.modality == "image"), "flag picture -> capital must never be trained"
        assert not ("program" in a.question and a.modality == "image")


def test_prioritised_sampling_goes_by_one_minus_success():
    pool = [Item("ocr", "image", i, success=s) for i, s in enumerate([0.9, 0.6, 0.1, 1.0])]
    rng = np.random.default_rng(0)
    counts = np.bincount([choose(pool, 1, rng)[0].seed for _ in range(4000)], minlength=4) / 4000
    assert np.allclose(counts, np.array([0.1, 0.4, 0.9, 0.05]) / 1.45, atol=0.02)          # the last one: the floor
    uniform = np.bincount([choose(pool, 1, rng, prioritised=False)[0].seed for _ in range(4000)], minlength=4) / 4000
    assert np.allclose(uniform, 0.25, atol=0.03)


def test_the_curriculum_lets_easy_problems_in_first():
    pool = [Item("ocr", "image", i, difficulty=i / 10) for i in range(10)]
    rng = np.random.default_rng(0)
    assert {item.seed for _ in range(50) for item in choose(pool, 2, rng, easiest=0.3)} == {0, 1, 2}
    assert {item.seed for _ in range(200) for item in choose(pool, 2, rng, easiest=1.0)} == set(range(10))


def test_curation_drops_what_is_always_solved_or_guessed(monkeypatch):
    """Three items: always solved; never solved but guessed in five of eight tries; solved in 3 of 10, guessed in four of eight."""
    solved = {1: ([1] * 10, [0] * 8), 2: ([0] * 10, [1] * 5 + [0] * 3), 3: ([1] * 3 + [0] * 7, [1] * 4 + [0] * 4)}
    asked = []

    def begin(engine, item, k, max_new, key, thinking=True):
        asked.append((k, thinking))
        return rollout.Group(None, [], False, item, right=solved[item.seed][0 if thinking else 1])
    monkeypatch.setattr(rollout, "start", begin)
    monkeypatch.setattr(rollout, "carry_on", lambda engine, groups, temperature: (groups, []))
    pool = [Item("ocr", "image", seed) for seed in (1, 2, 3)]
    shares = rollout.curate(None, pool, 0, 16)
    assert set(asked) == {(10, True), (8, False)}, "k1.5: 10 tries, 8 guesses without thinking"
    assert [item.seed for item in pool] == [3] and (pool[0].difficulty, pool[0].success, pool[0].guessed) == pytest.approx((0.7, 0.3, 0.5))
    assert shares == pytest.approx({"asked": 3, "always_solved": 1 / 3, "guessed": 1 / 3, "kept": 1})


# ---- rewards ---------------------------------------------------------------------------------------------------------------------------

def said(text, thinking=" so.", end=True):
    ids = [*TOK.encode(thinking), TOK.end_think, *TOK.encode(text), *([TOK.im_end] if end else [])]
    return Response(ids, stop="end" if end else "length", parsed=TOK.parse_response(ids, opened=True))


RED = Problem("perception", "image", (), "what colour is the star?", "red")


def test_reward_is_the_verifier_s_and_format_a_condition():
    assert reward(RED, said(" red")) == 1.0 and reward(RED, said(" blue")) == 0.0
    assert reward(RED, said(" red", end=False)) == 0.0 and reward(RED, said(" red", thinking="")) == 0.0
    cut = said(" red")
    cut.stop = "length"                                                     # it wanted another turn of the tool and had none left
    assert reward(RED, cut) == 0.0
    ids = [*TOK.encode(" red"), TOK.im_end]
    assert reward(RED, Response(ids, stop="end", parsed=TOK.parse_response(ids, opened=True))) == 0.0       # never closed its thinking
    assert reward(RED, Response(ids, stop="end", parsed=TOK.parse_response(ids)), thinking=False) == 1.0    # asked without thinking


CHEATS = [("exact", "red", ["red blue", "red, blue, green", "red or blue", "", ".", "the answer", "red\nblue"]),
          ("count", "3", ["1 2 3 4", "3 3", "-3", "3.0", "03 4", "three", "1000", "", "2 or 3"]),
          ("caption", "red star, blue ring", [", , ,", "star", "red", "red ring, blue star", "anything"]),
          ("box", "10 10 30 30", ["0 0 99", "30 30 10 10", "10 10 30 30 40", "-1 -1 99 99", "a b c d", "1e9 0 0 0", "10 10"]),
          ("points", "50 50", ["", "nan nan", "50", "50 50 50", "1000 1000", ", ".join(f"{x} {y}" for x in range(9) for y in range(9))]),
          ("ocr", "407", ["", " ", "no digits", "....."]),
          ("program", "star('red', 40, 40, 60, 60);", ["calls = []", "while True: pass", "import os", "star", "star('red')", "x = [0] * 10**9",
                                                   "calls.append(('star', 'red', 10**9, 0, 1, 1))", "calls = 7", "def star(*a): pass", ""])]


@pytest.mark.parametrize("verifier, truth, answers", CHEATS)
def test_answers_that_try_to_cheat_earn_nothing(verifier, truth, answers):
    problem = Problem("perception", "image", (), "?", truth, verifier=verifier)
    for answer in answers:
        assert rollout.verify.score(problem, answer) == 0.0, answer


def test_saying_everything_never_beats_saying_what_is_there():
    """A list of all colours and kinds, a box of the whole picture, the middle of the picture: partial credit stays below one half."""
    everything = ", ".join(f"{colour} {kind}" for colour in rollout.verify.draw.COLOURS for kind in rollout.verify.draw.KINDS)
    assert rollout.verify.caption_f1(everything, "red star, blue ring") < 0.1
    assert rollout.verify.rate("box", "0 0 99 99", "10 10 30 30") < 0.1 and rollout.verify.rate("points", "50 50", "10 90, 80 20") < 0.1
    assert rollout.verify.ocr("0123456789", "407") == 0.0


def test_a_right_answer_in_a_broken_form_is_not_solved(monkeypatch):
    """What success counts is what could be rewarded: prioritised sampling and length rewards go by it."""
    problem = Problem("reasoning", "text", (), "2 + 2?", "4")
    parsed = {"content": " 4", "thinking": " two and two", "well_formed": True, "tool_calls": []}
    group = rollout.begin(ENGINE, problem, 2, 9, (0,))
    for talk, stop in zip(group.talks, ("end", "length")):
        talk.response, talk.over = Response([5], [-1.0], [True], [0], stop=stop, parsed=parsed), True
    monkeypatch.setattr(rollout, "respond", lambda *_: None)
    done, = rollout.carry_on(ENGINE, [group], 1.0)[0]
    assert done.rewards == [1.0, 0.0] and done.right == [True, False]


# ---- training batches -------------------------------------------------------------------------------------------------------------------

def test_old_log_probabilities_are_those_of_the_targets():
    """At the weights that sampled, new equals old token by token, in whatever order packing put the documents."""
    groups = finished()
    batches = micro_batches(groups, [[0.1, 0.5, 0.9]] * 3, TOK.patch, TOK.pad, 10 ** 6)
    assert len(batches) == 1
    training, = batches
    with torch.no_grad():
        new, _ = ENGINE.model.target_logprobs(training.batch)
    assert len(new) == sum(r.written for g in groups for r in g.responses)
    assert np.allclose(new.numpy(), training.old, atol=2e-4)
    lengths = np.bincount(training.owner, minlength=9)
    assert lengths.tolist() == [r.written for g in groups for r in g.responses]
    assert training.reward.tolist() == pytest.approx([0.1, 0.5, 0.9] * 3) and training.baseline.tolist() == pytest.approx([0.5] * 9)
    assert training.spread.tolist() == pytest.approx([np.std([0.1, 0.5, 0.9])] * 9)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_learning_begins_at_the_log_probabilities_that_sampled(temperature):
    """T15: at the temperature of sampling, before any step, no token's ratio differs from 1."""
    model = engine().model.train()
    learner = Learner(model, TOK, muon(model, 1e-4), temperature=temperature)
    assert learner.update(finished(temperature=temperature), [[0.1, 0.5, 0.9]] * 3, 0)["mismatch_max"] < 5e-4


def test_micro_batches_keep_groups_whole_and_add_up():
    groups, rewards = finished(), [[0.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.2, 0.4, 0.9]]
    model = ENGINE.model

    def gradient(most):
        model.zero_grad()
        batches = micro_batches(groups, rewards, TOK.patch, TOK.pad, most)
        tokens, responses = sum(len(b.old) for b in batches), sum(len(b.reward) for b in batches)
        for b in batches:
            new, _ = model.target_logprobs(b.batch)
            arrays = [torch.from_numpy(a) for a in (b.old, b.owner, b.reward, b.baseline, b.spread)]
            k25(Samples(new, *arrays, tokens, responses)).backward()
        return len(batches), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    (one, whole), (several, parts) = gradient(10 ** 6), gradient(1)
    assert (one, several) == (1, 3) and torch.allclose(whole, parts, atol=1e-6)
    assert whole.abs().max() > 0
    model.zero_grad()


def test_shared_pictures_are_encoded_once_and_give_the_same_numbers():
    group, = finished(ITEMS[:1])
    training, = micro_batches([group], [[0.0, 1.0, 1.0]], TOK.patch, TOK.pad, 10 ** 6)
    clip, = group.talks[0].prompt.clips
    assert len(training.batch.grid_thw) == 1 and len(training.batch.media) == 3 * clip.tokens(TOK.patch)
    with torch.no_grad():
        shared, _ = ENGINE.model.target_logprobs(training.batch)
        training.batch.patches, training.batch.grid_thw = training.batch.patches.repeat(3, 1), training.batch.grid_thw * 3
        training.batch.media = None
        apart, _ = ENGINE.model.target_logprobs(training.batch)
    assert torch.allclose(shared, apart, atol=1e-5)


# ---- unfinished groups -------------------------------------------------------------------------------------------------------------------

def test_a_frozen_group_goes_on_as_if_nothing_had_happened():
    pool = ITEMS
    groups = [start(ENGINE, item, 2, 14, (5, n)) for n, item in enumerate(pool)]
    for _ in range(2):                                                      # so that counters differ from one another
        done, rest = rollout.carry_on(ENGINE, groups, 1.0, segment=4)
    again = [thaw(ENGINE, json.loads(json.dumps(freeze(group))), pool) for group in rest]
    straight, _ = rollout.carry_on(ENGINE, rest, 1.0, segment=100)
    resumed, _ = rollout.carry_on(ENGINE, again, 1.0, segment=100)
    assert rest and [r.ids for g in straight for r in g.responses] == [r.ids for g in resumed for r in g.responses]
    assert [r.versions for g in straight for r in g.responses] == [r.versions for g in resumed for r in g.responses]
    assert [g.rewards for g in straight] == [g.rewards for g in resumed]


CALL = TOK.render_chat([{"role": "user", "content": ""}, {"role": "assistant", "thinking": "t", "content": "", "tool_calls": [
    {"name": "python", "arguments": {"code": "n = 41\nimg.crop((0, 0, 16, 16))"}}]}])


def test_a_thawed_tool_knows_its_variables_and_its_pictures():
    pool = [Item("code", "image", 7)]
    group = start(ENGINE, pool[0], 1, 40, (5, 0))
    group.open_tools(ENGINE)
    talk, = group.talks
    call = CALL.ids[CALL.ids.index(TOK.think) + 1:]
    talk.response.add(call, [-1.0] * len(call), True)
    talk.response.parsed, talk.response.stop, talk.turn_tokens, talk.asks = TOK.parse_response(call, opened=True), "end", len(call), True
    ENGINE._answer([talk])
    assert len(talk.response.clips) == 1 and not talk.over
    thawed = thaw(ENGINE, json.loads(json.dumps(freeze(group))), pool)
    again, = thawed.talks
    assert again.sandbox is None and len(again.response.clips) == 1             # no process waits while nothing is sampled
    thawed.open_tools(ENGINE)
    assert again.sandbox.run("n + 1").text == "42" and again.response.ids == talk.response.ids
    assert (again.response.clips[0].frames == talk.response.clips[0].frames).all() and again.turns == talk.turns
    group.close_tools(), thawed.close_tools()


def test_unfinished_groups_hold_no_processes():
    groups = [start(ENGINE, Item("code", "image", 7), 2, 14, (5, 0))]
    _, rest = rollout.carry_on(ENGINE, groups, 1.0, segment=2)
    assert rest and all(talk.sandbox is None for group in rest for talk in group.talks)
