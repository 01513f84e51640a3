"""Data: packing, masks, the zero-vision promise, a data position that is one number."""
import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanokimi import data
from nanokimi.config import VisionConfig
from nanokimi.tokenizer import Rendered, Tokenizer
from nanokimi.world import content, dense, draw, problems as world, scenes, tools
from nanokimi.world.types import Problem

VISION, LENGTH = VisionConfig(), 256


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(data.corpus(300), 700, VISION.patch)


def batches(tokenizer, stage="pretrain", **changes):
    settings = dict(stage=stage, tokenizer=tokenizer, vision=VISION, seed=0, documents=8, length=LENGTH, steps=20)
    return data.Batches(**(settings | changes))


def same(a, b):
    return torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets) and (a.patches is b.patches is None or torch.equal(a.patches, b.patches))


def test_a_batch_is_a_function_of_seed_and_step(tokenizer):
    (a, _), _ = batches(tokenizer)[7]
    (b, _), _ = batches(tokenizer, first=5)[2]
    (c, _), _ = batches(tokenizer, seed=1)[7]
    assert same(a, b) and not same(a, c)


def test_two_processes_make_the_shards_of_one(tokenizer):
    both, counts = batches(tokenizer)[3]
    first, c0 = batches(tokenizer, rank=0, world=2)[3]
    second, c1 = batches(tokenizer, rank=1, world=2)[3]
    assert same(both[0], first[0]) and same(both[1], second[0])
    assert all(counts[name] == c0[name] + c1[name] for name in counts)
    assert not same(both[0], both[1]), "two shards hold the same data: half of the compute would be wasted"


def test_the_stream_equals_the_dataset(tokenizer):
    for i, (shards, _) in enumerate(data.stream(batches(tokenizer, steps=3))):
        assert same(shards[0], batches(tokenizer, steps=3)[i][0][0])


@pytest.mark.parametrize("reasoning, said", [("from left to right: red star 1, fox. stars: 1.", "red star 1, fox."), ("from left to right: fox.", "fox."),
                                             ("the digits 0 7.", "0 7."), ("the fox moves up.", "the fox moves up.")])
def test_notes_say_what_is_seen_and_no_word_more(reasoning, said):
    assert data.notes(SimpleNamespace(reasoning=reasoning)) == said


def test_sums_keep_all_of_their_steps():
    rng = np.random.default_rng(0)
    for problem in (world.chat_arithmetic_problems(rng, "train")[0] for _ in range(60)):
        messages, thinking = data.chat_messages(problem, rng)
        assert not thinking or all(step in messages[-1]["thinking"] for step in problem.reasoning.split(". "))


def test_packing_uses_every_document_and_never_predicts_across():
    rng = np.random.default_rng(0)
    docs = [Rendered(list(range(10 + n, 10 + 2 * n)), (rng.random(n) < 0.5).tolist()) for n in rng.integers(1, 60, size=40)]
    rows = data.pack(docs, 64)
    assert sorted(len(d.ids) for row in rows for d in row) == sorted(len(d.ids) for d in docs)
    assert all(sum(len(d.ids) for d in row) <= 64 for row in rows)
    batch = data.to_batch(rows, 64, pad=0, patch=8)
    for r, row in enumerate(rows):
        start = 0
        for doc in row:
            n = len(doc.ids)
            assert batch.ids[r, start:start + n].tolist() == doc.ids and batch.positions[r, start:start + n].tolist() == list(range(n))
            want = [token if learned else -100 for token, learned in zip(doc.ids, doc.mask)][1:] + [-100]
            assert batch.targets[r, start:start + n].tolist() == want, "position t is trained on token t + 1 if THAT token is learned"
            start += n
        assert (batch.segments[r, start:] == 0).all() and (batch.targets[r, start:] == -100).all()


def test_a_document_that_does_not_fit_is_refused():
    with pytest.raises(AssertionError, match="does not fit"):
        data.pack([Rendered([1] * 65, [True] * 65)], 64)


def test_media_tokens_are_never_trained_on_and_match_the_patches(tokenizer):
    for step in range(6):
        for batch in batches(tokenizer)[step][0]:
            assert not (batch.targets == tokenizer.media_pad).any()
            assert int((batch.ids == tokenizer.media_pad).sum()) == sum(h * w // 4 for _, h, w in batch.grid_thw)
            assert len(batch.patches) == sum(t * h * w for t, h, w in batch.grid_thw)


def test_the_cold_start_holds_no_media_token(tokenizer):
    """Zero vision: not one picture in SFT (K2.5 2.2), and every chat teaches something."""
    for step in range(10):
        for batch in batches(tokenizer, stage="sft", documents=24)[step][0]:
            assert batch.patches is None and not (batch.ids == tokenizer.media_pad).any() and not (batch.ids == tokenizer.media_begin).any()
            assert (batch.targets != -100).any()


def test_pretraining_with_pictures_holds_no_chat_token(tokenizer):
    """The format must come from the cold start: zv_format_before is ~0 only if pre-training never shows it."""
    special = torch.tensor([tokenizer.im_user, tokenizer.im_assistant, tokenizer.think, tokenizer.end_think, tokenizer.section_begin])
    for step in range(10):
        for batch in batches(tokenizer)[step][0]:
            assert not torch.isin(batch.ids, special).any()


def test_training_never_uses_another_split(tokenizer, monkeypatch):
    """Every door through which held-out content could come is watched: pairs, pictogram sizes, handwriting, prose, text problems."""
    seen = set()

    def watch(module, name, position):
        original = getattr(module, name)

        def spy(*args, **kwargs):
            seen.add((name, kwargs.get("split", args[position] if len(args) > position else "train")))
            return original(*args, **kwargs)
        monkeypatch.setattr(module, name, spy)
    watch(scenes, "pairs", 0), watch(world, "pairs", 0), watch(world, "pictogram_size", 3), watch(scenes, "pictogram_size", 3), watch(dense, "pictogram_size", 3)
    watch(content, "digits_split", 0), watch(content, "wiki", 0), watch(world, "in_split", 2), watch(tools, "in_split", 2)
    for step in range(1, 20, 2):                                             # from the first albums to the exam's difficulty
        batches(tokenizer, documents=24)[step], batches(tokenizer, stage="sft", length=384)[step]
    list(data.corpus(100))
    assert {split for _, split in seen} == {"train"}
    assert {name for name, _ in seen} == {"pairs", "pictogram_size", "digits_split", "wiki", "in_split"}


def test_the_path_begins_with_single_things_and_text_keeps_its_share(tokenizer):
    """Pictures with several things wait; the share of text documents is the same from the first step (early fusion)."""
    rng = np.random.default_rng(0)
    draw = lambda progress: [data.pretrain_document(rng, tokenizer, VISION, LENGTH, kind, progress)[0]
                             for kind in data.draw_kinds(rng, data.PRETRAIN, 600)]
    first, last = draw(0.0), draw(1.0)
    assert not set(first) & set(data.EASIER) and set(data.EASIER) <= set(last)
    text = [np.mean([kind in (*data.TEXT, "tool") for kind in kinds]) for kinds in (first, last)]
    assert abs(text[0] - text[1]) < 0.01


def test_every_batch_meets_the_shares_within_one_document():
    mix = {"a": 0.5, "b": 0.3, "c": 0.2}
    for seed in range(20):
        kinds = data.draw_kinds(np.random.default_rng(seed), mix, 11)
        assert len(kinds) == 11 and all(abs(kinds.count(kind) - 11 * share) < 1 for kind, share in mix.items())
    first = [data.draw_kinds(np.random.default_rng(seed), mix, 1)[0] for seed in range(3000)]
    assert all(abs(first.count(kind) / 3000 - share) < 0.03 for kind, share in mix.items())


def test_no_name_is_given_twice():
    """Two tables of the same name look like one, and the second wins in silence."""
    for path in (Path(data.__file__).parent).rglob("*.py"):
        names = [target.id for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Assign)
                 for target in node.targets if isinstance(target, ast.Name)]
        assert len(names) == len(set(names)), f"{path.name}: {[name for name in names if names.count(name) > 1]}"


def test_answers_end_where_their_line_ends(tokenizer):
    """The line's end is learned: otherwise a model goes on listing things that are not there."""
    problem = world.arithmetic_problems(np.random.default_rng(0), "train")[0]
    for think in (False, True):
        doc = tokenizer.render_document(data.question_parts(problem, think) + data.question_parts(problem, think))
        ends = [i for i, token in enumerate(doc.ids) if tokenizer.decode([token]).endswith("\n") and doc.mask[i]]
        assert len(ends) >= 2 and all(doc.mask[i - 1] for i in ends)


def test_thinking_is_short_and_long_and_corrects_itself():
    rng = np.random.default_rng(0)
    thoughts = []
    for _ in range(400):
        problems = data.make_problems("scene_text", rng)
        messages, thinking = data.chat_messages(problems[rng.integers(len(problems))], rng)
        thoughts.append(messages[-1].get("thinking") if thinking else None)
    assert 0.1 < np.mean([t is None for t in thoughts]) < 0.35
    given = [t for t in thoughts if t]
    assert any("wait" in t for t in given) and any("plan" in t and "check" in t for t in given) and any("plan" not in t for t in given)


def test_nothing_is_thought_where_there_is_nothing_to_think():
    """Such an answer is a direct one, and read misled like any other."""
    told, seen = (Problem("knowledge", "image", context, "what is it?", "red star") for context in (("picture 1: ",), ()))
    assert not any(data.thinks(problem, True, np.random.default_rng(seed)) for problem in (told, seen) for seed in range(20))


def test_the_smallest_step_has_pictures_in_every_shard(tokenizer):
    """A process whose batch has none would not meet the others where they exchange the encoder's gradients."""
    batches = data.Batches("pretrain", tokenizer, VisionConfig(), 0, 4, 192, 100)
    assert all(shard.patches is not None for step in range(0, 100, 4) for shard in batches[step][0])


def test_every_shard_of_a_step_is_made_once(tokenizer):
    """By one process or by two: together they hold the step's documents."""
    make = lambda rank, world: data.Batches("sft", tokenizer, VISION, 0, 8, 384, 2, rank=rank, world=world)[0]
    (whole, counts), parts = make(0, 1), [make(rank, 2) for rank in (0, 1)]
    assert len(whole) == data.SHARDS and sum(len(batches) for batches, _ in parts) == data.SHARDS
    assert counts["documents"] == 8 == sum(count["documents"] for _, count in parts)


def test_a_form_is_not_read_off_the_colour_before_it(tokenizer):
    """Captions and direct answers about what is shown: the model reads other colours than it learns to say, and everything else as it is.
    Text, and thinking, which must be able to rely on its own words, stay as they are."""
    rng, colours = np.random.default_rng(0), [f" {colour}" for colour in draw.COLOURS]
    differ = total = 0
    for _ in range(200):
        words = " red star, clock 2, blue ring appears, green."
        doc = tokenizer.render_document(data.misled(words, rng))
        assert tokenizer.decode(doc.ids[:-1]) == words and all(doc.mask)
        batch = data.to_batch([[doc]], len(doc.ids), tokenizer.pad, 8)
        read, learned = batch.ids[0].tolist(), [doc.ids[0], *batch.targets[0, :-1].tolist()]
        assert learned == doc.ids, "what is learned is what is there"
        wrong = [i for i, (a, b) in enumerate(zip(read, doc.ids)) if a != b]
        assert all(tokenizer.decode([read[i]]) in colours and tokenizer.decode([doc.ids[i + 1]]) in (" star", " ring") for i in wrong)
        differ, total = differ + len(wrong), total + 2
    assert abs(differ / total - data.MISLED * 7 / 8) < 0.1
    problems = world.scene_problems(np.random.default_rng(1), "train", count=3)
    thinking = tokenizer.render_document(data.question_parts(problems[0], think=True))
    assert not thinking.shown
    for kind in ("scene_text", "interleaved"):
        assert not data.pretrain_document(rng, tokenizer, VISION, 512, kind, 1.0)[1].shown


def test_a_sum_is_always_worked_out():
    """Also behind a picture that it is not about; questions about a text mostly, captions never."""
    rng = np.random.default_rng(0)
    sums = [p for _ in range(200) for p in data.interleaved_problems(rng) if p.ability == "reasoning" and not p.code]
    assert len(sums) > 30 and all(data.thinks(p, False, rng) for p in [*sums, *world.arithmetic_problems(rng, "train")])
    told = [p for _ in range(200) for p in world.scene_problems(rng, "train", modality="text")]
    captions, others = ([p for p in told if (p.verifier == "caption") == wanted] for wanted in (True, False))
    assert not any(data.thinks(p, True, rng) for p in captions)
    assert abs(np.mean([data.thinks(p, False, rng) for p in others]) - data.ALOUD) < 0.06


def test_what_recall_says_is_true():
    rng = np.random.default_rng(0)
    for _ in range(100):
        row, again, *rest = data.recall_document(rng, 0)
        names = row.strip(".").split(", ")
        assert again == f" again: {row}" and len(rest) >= 4
        for asked, said in zip(rest[::2], rest[1::2]):
            said = said.strip(" .")
            if asked.endswith(" comes the"):
                word, name = asked.strip().removesuffix(" comes the").split(" the ")
                there = names.index(name) + {"after": 1, "before": -1}[word]
                assert there >= 0 and names[there] == said
            else:
                assert f"{said} {asked.strip().removeprefix('the ').removesuffix(' is')}" in names


def test_a_crop_comes_back_in_words():
    """What SFT says in place of a picture is what the digits are."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem, = data.make_problems("crop", rng)
        (_, call, result, final), thinking = data.chat_messages(problem, rng)
        digits = [str(world.NUMBER_WORDS.index(word)) for word in result["content"].split("digits ")[1].strip(".").split(", ")]
        assert thinking and "".join(digits) == problem.answer == final["content"].strip() and " ".join(digits) in final["thinking"]
        assert "img.crop" in call["tool_calls"][0]["arguments"]["code"]


def test_a_picture_behind_another_question_is_never_what_it_is_about():
    """Interleaved documents often show mazes, specks and the like, but not before a question about such a picture: RL is the first to ask."""
    rng = np.random.default_rng(0)
    problems = [p for _ in range(150) for p in data.interleaved_problems(rng)]
    large = [max(p.context[0].pixels.shape) > 96 for p in problems]
    assert 0.25 < np.mean(large) < 0.6 and all(p.modality == "text" for p in problems)
    assert not any(big and "img" in p.meta for big, p in zip(large, problems)) and any("img" in p.meta for p in problems)


def test_what_distracts_is_as_short_as_a_word_and_as_long_as_a_large_picture(tokenizer):
    rng = np.random.default_rng(0)
    problem, = data.make_problems("tool", rng)
    told = [data.distracted(problem, rng) for _ in range(200)]
    assert all(p.context[1:] == problem.context and (p.question, p.code) == (problem.question, problem.code) for p in told)
    lengths = np.array([len(tokenizer.encode(p.context[0])) for p in told])
    assert lengths.min() < 5 and lengths.max() > 42 and np.mean(lengths > 42) > 0.1, "a large picture has 42 media tokens"


def test_a_program_is_the_same_tokens_in_a_document_and_in_a_call(tokenizer):
    """Else what pre-training teaches about programs behind pictures is of no use to the cold start."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem, = data.make_problems("tool", rng)
        chat = tokenizer.render_chat(*data.chat_messages(problem, rng)[:1], thinking=True).ids
        call = chat[chat.index(tokenizer.call_argument) + 1:chat.index(tokenizer.call_end)]
        written = tokenizer.render_document(data.question_parts(problem, True)).ids
        inner = call[2:-1]                                               # the brackets' tokens also hold what is beside them
        assert any(written[i:i + len(inner)] == inner for i in range(len(written)))


def test_a_paragraph_that_fits_keeps_its_last_word():
    whole = set(content.wiki("train"))
    rng = np.random.default_rng(0)
    texts = [data.wiki_document(rng, 192)[0] for _ in range(300)]
    assert sum(text in whole for text in texts) > 100 and all(text in whole or len(text) <= 3 * 192 for text in texts)


def test_words_before_a_tool_chat_name_no_pair_that_is_held_out():
    unseen = {" ".join(pair) for pair in scenes.HELD_OUT["val"] | scenes.HELD_OUT["test"]}
    rng, seen = np.random.default_rng(0), set()
    for _ in range(600):
        words = data.other_words(rng)
        seen |= {part.strip(" .") for part in words.split(",")}
        assert not unseen & {part.strip(" .") for part in words.split(",")}
    assert len(seen & {" ".join(pair) for pair in scenes.pairs("train")}) == 52
