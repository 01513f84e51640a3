"""From problems to batches: documents for pre-training, chats for the cold start, packing, and a data position that is one number.

Batch number `step` is a pure function of the run's settings, the stage and `step`: resuming a run needs nothing but the step. Loss is on answers, thinking,
captions and prose; never on media tokens, questions or tool results.
"""
import json
import re
import signal
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .config import LONGER
from .model import NO_LOSS, Batch
from .tokenizer import Learn, Rendered, Tokenizer, declare_tools
from .vision import patchify, prepare_image, prepare_video
from .world import content, dense, draw, long, problems as world, tools
from .world.scenes import pairs, sample_kinds, sample_scene
from .world.types import Clip, Image

STAGES = {"pretrain": 1, "sft": 2, "longctx": 3}
PATHS = {"picture": (0.10, 0.40), "clip": (0.20, 0.60)}    # from easy to the exam's difficulty between these shares of the steps (ours)
SHARDS = 2                      # parts of a step; the number of processes must divide it

# Documents by kind, in shares of the documents drawn (shares of tokens differ: train.py prints those of pictures and clips). The vision ratio is constant from the first
# step (K2.5 2.1: early fusion). All values ours; K2.5 does not disclose its own.
PRETRAIN = {
    "events": 0.115, "clip": 0.06,                                                                   # clips: dense, and with questions
    "album": 0.10, "handwriting": 0.045, "caption": 0.09, "boxes": 0.05,                              # pictures, dense
    "scene": 0.115, "counting": 0.11, "naming": 0.03, "ocr": 0.015,                                   # pictures with questions
    "scene_text": 0.085, "counting_text": 0.02, "category": 0.01, "capital": 0.015, "ocr_text": 0.005, "clip_text": 0.01, "placed": 0.005,    # their twins
    "arithmetic": 0.04, "tool": 0.015, "program": 0.005, "wiki": 0.005, "recall": 0.02,              # text
    "interleaved": 0.035,                                                                            # text behind a picture
}
TEXT = {kind: PRETRAIN[kind] for kind in ("scene_text", "counting_text", "category", "capital", "ocr_text", "clip_text", "placed",
                                          "arithmetic", "program", "wiki", "recall")}
EASIER = {"caption": "album", "scene": "album", "counting": "album", "clip": "events", "ocr": "handwriting"}   # first
ALOUD = 0.7                     # of the counts, and of the questions about a text, are answered after thinking (ours)
MISLED = 0.75                   # of the colours before a form, in captions and direct answers (ours): see misled
COLOUR_AND_FORM = re.compile(rf"( (?:{'|'.join(draw.COLOURS)}))(?= (?:{'|'.join(draw.KINDS)})\b)")
DENSE = {"caption": dense.caption, "boxes": dense.boxes, "album": dense.album, "handwriting": dense.handwriting, "events": dense.events}
# The cold start: chats by kind. A part stays documents (text only), so that it does not forget their format (as PTX mixing does, ours).
SFT = {"document": 0.22, "scene_text": 0.16, "counting_text": 0.05, "category": 0.04, "capital": 0.02, "ocr_text": 0.04, "clip_text": 0.07, "placed": 0.04,
       "chat_arithmetic": 0.09, "tool": 0.22, "crop": 0.05}
# Long context: one document in five is long, which is half of the tokens; the others are pre-training's, so that nothing is forgotten.
# Ours: K2 tells its tokens (400B short, then 60B long), not its mixture; Kimi-VL took a quarter long and three quarters replay.
LONGCTX = {"document": 0.80, "haystack": 0.08, "pages": 0.03, "gallery": 0.03, "film": 0.06}
LONG = {"haystack": long.haystack_problems, "pages": long.pages_problems, "gallery": long.gallery_problems, "film": long.film_problems}


# ---- media -----------------------------------------------------------------------------------------------------------------------

def prepared(part, vision):
    """A picture or clip as the tokenizer and the encoder take it; text, and what is prepared already (own.py), as it is."""
    if isinstance(part, Image):
        return prepare_image(part.pixels, vision)
    return prepare_video(part.frames, part.fps, vision, part.times) if isinstance(part, Clip) else part


# ---- documents (pre-training) ------------------------------------------------------------------------------------------------------

PROBLEMS = {"scene": world.scene_problems, "counting": world.counting_problems, "clip": world.clip_problems, "naming": world.naming_problems,
            "ocr": world.ocr_problems, "category": world.category_problems, "capital": world.capital_problems,
            "clip_text": world.clip_twin_problems, "arithmetic": world.arithmetic_problems,
            "chat_arithmetic": world.chat_arithmetic_problems, "tool": tools.tool_problems,
            "program": world.program_problems, "placed": world.placed_problems,
            "scene_text": partial(world.scene_problems, modality="text"),
            "counting_text": partial(world.counting_problems, modality="text"), "ocr_text": partial(world.ocr_problems, modality="text"),
            "interleaved": lambda rng, _: interleaved_problems(rng), "crop": lambda rng, _: tools.crop_problems(rng)}
LEVELLED = ("scene", "counting", "clip")                   # of these there are easy ones: see world/problems.py


def make_problems(kind, rng, level=1.0):
    """The problems of one document."""
    return PROBLEMS[kind](rng, "train", **({"level": level} if kind in LEVELLED else {}))


def interleaved_problems(rng):
    """Questions in words behind a picture that they are not about, as on a web page (K2.5 pre-trains on interleaved documents; kinds and
    share are ours). Without them whatever follows a picture is about it, and after the cold start a tool call ends in what it shows. Many of
    the pictures are mazes, specks and the like, which look like a fish to a model that never saw one, but never before a question about
    such a picture: no stage before RL has those. No flags, as a flag beside its capital would be a x b."""
    kind = str(rng.choice(["arithmetic", "tool", "capital", "category", "ocr_text"], p=[0.35, 0.35, 0.1, 0.1, 0.1]))
    problems = make_problems(kind, rng)
    about_one = any("img" in problem.meta for problem in problems)
    picture = sample_scene(rng, "train").picture(rng) if about_one or rng.random() < 0.5 else tools.picture(rng, "train")
    return [replace(problem, context=(picture, *problem.context)) for problem in problems]


def question_prompt(problem, cue="answer"):
    """What stands before an answer or a chain of thought ("reasoning")."""
    return f"question: {problem.question}\n{cue}:"


def question_parts(problem, think):
    """A question with its answer, and the chain of thought or the program before it. The line's end is learned: it is where to stop.

    A program is written as JSON, as a tool call will hold it: in other tokens than those of plain lines ("\\n" is two letters there)."""
    if problem.code:
        program = json.dumps({"code": problem.code}, ensure_ascii=False)
        return [question_prompt(problem, "reasoning"), Learn(f" {problem.reasoning}\npython: {program}\nanswer: {problem.answer}\n")]
    if think and problem.reasoning:
        return [question_prompt(problem, "reasoning"), Learn(f" {problem.reasoning}\nanswer: {problem.answer}\n")]
    return [question_prompt(problem), Learn(f" {problem.answer}\n")]


def context_parts(problem, vision):
    """Text, pictures and clips that the questions are about, and a line's end."""
    return [*(prepared(part, vision) for part in problem.context), *(["\n"] if problem.context else [])]


def document(problems, rng, vision, most=3):
    """One context and up to `most` questions about it; where there are enough of them one is answered after reasoning, of counts most are. A
    caption, where there is one to ask for, is asked for in half of the documents that would leave it out: it says most about the picture."""
    parts = context_parts(problems[0], vision)
    order = list(rng.permutation(len(problems)))
    if rng.random() < 0.5:
        order.sort(key=lambda i: problems[i].verifier != "caption")
    reason = rng.integers(most + 1)                                      # which one reasons: none where the number is too high
    for n, i in enumerate(order[:most]):
        think = thinks(problems[i], n == reason, rng)
        prompt, answer = question_parts(problems[i], think)
        parts += [prompt, *([answer] if think or problems[i].modality == "text" else misled(answer, rng))]
    return parts


def thinks(problem, chosen, rng):
    """Whether a document reasons before this answer: always where it is a sum (those are not for guessing), mostly where things are
    counted or a text says what is needed, never where a caption is asked for (it would be said twice) or nothing is to be said."""
    told = any(isinstance(part, str) for part in problem.context)
    if problem.verifier == "caption":
        return False
    if problem.ability == "counting" or told:
        return rng.random() < ALOUD and bool(problem.reasoning)
    return bool(problem.reasoning) and (chosen or problem.ability == "reasoning" and problem.modality == "text")


def wiki_document(rng, tokens):
    """A stretch of an encyclopedia paragraph, cut at a word: about `tokens` tokens."""
    text = content.wiki("train")
    text = text[rng.integers(len(text))]
    return [Learn(text if len(text) <= 3 * tokens else text[:3 * tokens].rsplit(" ", 1)[0])]


def recall_document(rng, tokens):
    """Things in a row, said again, then what stands beside what and which colour a form has, in the words of chains of thought. A small
    language model copies badly; it learns to look back where nearly every token asks for it. Ours."""
    while True:
        kinds = [*dict.fromkeys(sample_kinds(rng, int(rng.integers(3, 8)), "train", world.IN_SCENES))]
        names = [kind if colour is None else f"{colour} {kind}" for colour, kind in kinds]
        if len(kinds) > 2 and world.split_of_text(", ".join(names)) == "train":
            break
    row = f"{', '.join(names)}."
    parts, forms = [row, Learn(f" again: {row}")], [kind for _, kind in kinds]
    for i in rng.permutation(len(kinds) - 1)[:3]:
        here, there, word = (i, i + 1, "after") if rng.random() < 0.5 else (i + 1, i, "before")
        parts += [f" {word} the {names[here]} comes the", Learn(f" {names[there]}.")]
    alone = [(colour, kind) for colour, kind in kinds if colour and forms.count(kind) == 1]
    for i in rng.permutation(len(alone))[:3]:
        parts += [f" the {alone[i][1]} is", Learn(f" {alone[i][0]}.")]
    return parts


PLAIN = {"wiki": wiki_document, "recall": recall_document}


def dense_document(items, vision, rng):
    """Small pictures or clips, each followed by what it shows: no questions, the most things for a document's price."""
    return [part for media, words in items for part in (prepared(media, vision), *misled(words, rng))]


def misled(words, rng):
    """Learned words about something shown, in which the model mostly reads another colour before a form than the one it has to say: the form
    must be read off what is shown, not off the word before it. Without this the language model learns which pairs of colour and form never
    occur and does not say them, although the encoder sees them (docs/LEARNED.md). Ours; close to scheduled sampling (Bengio et al. 2015)."""
    parts, end = [], 0
    for found in COLOUR_AND_FORM.finditer(words):
        if rng.random() < MISLED:
            parts += [Learn(words[end:found.start()]), Learn(found[1], f" {rng.choice(list(draw.COLOURS))}")]
            end = found.end(1)
    return [part for part in (*parts, Learn(words[end:])) if part]


def draw_kinds(rng, mix, number):
    """`number` kinds of a mix by systematic sampling: every share is met within one document, so that steps, and the processes that share
    a step, have equally much to do."""
    places, shares = (np.arange(number) + rng.random()) / number, np.array(list(mix.values()), float)
    return [list(mix)[i] for i in np.searchsorted((shares / shares.sum()).cumsum()[:-1], places, side="right")]


def pretrain_document(rng, tokenizer, vision, length, kind, progress=1.0):
    """One document of this kind, or of an easier one: (kind, Rendered). progress: share of the steps that are done."""
    start, end = PATHS["clip" if kind in ("clip", "events") else "picture"]
    level = min(1.0, max(0.0, (progress - start) / (end - start)))
    if rng.random() >= 3 * level:
        kind = EASIER.get(kind, kind)
    if kind in PLAIN:
        out = tokenizer.render_document(PLAIN[kind](rng, length))
        return kind, Rendered(out.ids[:length], out.mask[:length])
    if kind in DENSE:
        items = DENSE[kind](rng, level)
        while len((out := tokenizer.render_document(dense_document(items, vision, rng))).ids) > length:
            items = items[:-1]                                   # too long for a row: show fewer pictures
        return kind, out
    problems, most = make_problems(kind, rng, level), 3
    while True:                                                  # or ask fewer questions
        out = tokenizer.render_document(document(problems, rng, vision, most))
        if len(out.ids) <= length:
            return kind, out
        most -= 1
        if most == 0:
            problems, most = make_problems(kind, rng, level), 3


def longest(render, length):
    """About the largest size whose render(size) has at most `length` tokens, found in few trials. ValueError if size 1 has more."""
    size, tokens = 1, len(render(1).ids)
    if tokens > length:
        raise ValueError(f"the shortest of these documents has {tokens} tokens, there is room for {length}")
    more = (length - tokens) * size // tokens                    # by the mean so far: too few, as it counts the question, too
    while more:
        longer = len(render(size + more).ids)
        if longer <= length:
            size, tokens = size + more, longer
            more = (length - tokens) * size // tokens
        else:
            more = more * (length - tokens) // (longer - tokens)
    return size


def longctx_document(rng, tokenizer, vision, length, kind):
    """One document of the long context stage: (kind, Rendered). Its length is drawn evenly from the lengths that pre-training never met."""
    if kind == "document":
        return pretrain_document(rng, tokenizer, vision, length // LONGER, *draw_kinds(rng, PRETRAIN, 1))
    room, seed = int(rng.integers(length // LONGER, length + 1)), rng.integers(2 ** 32)

    def render(size):
        own = np.random.default_rng(seed)
        return tokenizer.render_document(document(LONG[kind](own, "train", size), own, vision, long.MOST))
    return kind, render(longest(render, room))


# ---- chats (zero-vision cold start) --------------------------------------------------------------------------------------------------

PYTHON_TOOL = {"name": "python", "description": "run code; img is the picture: img.size, img.pixels(box), img.crop(box)",
               "parameters": {"properties": {"code": {"type": "string"}}, "required": ["code"]}}


LOOK = "plan: look at everything, then answer."
ADD = "plan: add the ones, then the tens, then the hundreds."


def long_thinking(problem, rng):
    """Planning, checking and correcting (k1.5 2.2: what long chains of thought show), in words a small model can follow."""
    listing, _, step = problem.reasoning.partition(". ")
    if not step:
        return f"plan: look, then answer. {problem.reasoning} check: {problem.reasoning}"
    if problem.ability == "counting" and rng.random() < 0.5:
        words = step.partition(":")[0]
        return f"plan: look, then count. {listing}. {words}: {int(problem.answer) + 1}. wait, count again. {listing}. {step}"
    return f"plan: look, then answer. {listing}. {step} check: {step}"


def notes(problem):
    """A thought about what is shown, without the words that lead in and without the step that only says the answer (ours): something
    shorter to choose. On pictures it is less often right than all steps, and RL gives it up."""
    listing = problem.reasoning.removeprefix("from left to right: ").removeprefix("the digits ").partition(". ")[0]
    return f"{listing.removesuffix('.')}."


def checked_thinking(problem, rng):
    """Long thinking whose length varies, for long2short: mostly a plan, the steps, then none to two more looks (words and shares ours): what
    is never left out, no method can learn to leave out. A sum's last step is looked at alone, as numbers far back are copied badly."""
    sums = problem.question.removeprefix("what is ")[:1].isdigit()
    again = problem.reasoning.split(". ")[-1] if sums else problem.reasoning
    plan = [ADD if sums else LOOK] if rng.random() < 2 / 3 else []
    looks = rng.choice(["check:", "wait, once more:"], rng.choice(3, p=(0.25, 0.5, 0.25)), p=(0.75, 0.25))
    return " ".join([*plan, problem.reasoning, *(f"{look} {again}" for look in looks)])


def chat_messages(problem, rng, style=None):
    """(messages, thinking?) for one problem: instant, notes, all steps, or long thinking (long2short: all of it "long", or all
    "brief"); a tool call where the problem needs one.

    Thoughts and answers begin with a space, so that their first word is the token that pre-training knows (" red", not "red").
    """
    question = " ".join([*problem.context, problem.question])
    user = {"role": "user", "content": question}
    if problem.code:
        call = {"role": "assistant", "thinking": f" {problem.reasoning}", "content": "",
                "tool_calls": [{"name": "python", "arguments": {"code": problem.code}}]}
        returned = problem.meta.get("returned")                          # in place of a picture: what it shows
        thought = world.digits_read(problem.answer) if returned else f"the result is {problem.answer}."
        result = {"role": "tool", "content": returned or problem.answer}
        return [user, call, result, {"role": "assistant", "thinking": f" {thought}", "content": f" {problem.answer}"}], True
    dice = rng.random()
    if dice < 0.2 or not problem.reasoning:
        return [user, {"role": "assistant", "content": f" {problem.answer}"}], False
    if style:
        own = np.random.default_rng(rng.integers(2 ** 32))               # so that both styles leave `rng` in the same state
        thought = checked_thinking(problem, own) if style == "long" else problem.reasoning
    elif dice < 0.5 and problem.context:                                 # sums need all of their steps
        thought = notes(problem)
    else:
        thought = long_thinking(problem, rng) if dice > 0.85 else problem.reasoning
    return [user, {"role": "assistant", "thinking": f" {thought}", "content": f" {problem.answer}"}], True


def distracted(problem, rng):
    """The same problem behind words about other things, from one to a hundred tokens of them. A large picture is as long, and looks like a
    zebra to a model that never saw one: the question must decide all the same, and a call be written to its end (ours)."""
    return replace(problem, context=(other_words(rng), *problem.context))


def other_words(rng):
    """Things in a row, things that are recalled, or an encyclopedia, about as long as 1 to 29 names, short ones as likely as long ones."""
    number = int(np.exp(rng.uniform(0, np.log(30))))
    names = rng.choice(sorted(pictogram.name for pictogram in content.PICTOGRAMS.values()), number)
    things = [" ".join(pair) for pair in pairs("train")]
    shown = [str(name) if rng.random() < 0.5 else things[rng.integers(len(things))] for name in names]
    kind = rng.choice(["row", "recall", "wiki"], p=[0.6, 0.2, 0.2])
    if kind == "recall":
        return "".join(recall_document(rng, 0))[:6 * number + 10]
    return f"{', '.join(shown)}." if kind == "row" else str(wiki_document(rng, 2 * number + 4)[0])


def no_media(out, tokenizer):
    """The same Rendered, which must hold no picture and no clip."""
    assert tokenizer.media_pad not in out.ids and not out.clips, "zero-vision SFT holds a media token"
    return out


def sft_document(rng, tokenizer, vision, length, style=None):
    """One chat (or document) of the cold start: (kind, Rendered). Text only: asserted, not hoped (K2.5 2.2)."""
    while True:
        kind, = draw_kinds(rng, SFT, 1)
        if kind == "document":
            return kind, no_media(pretrain_document(rng, tokenizer, vision, length, *draw_kinds(rng, TEXT, 1))[1], tokenizer)
        problems = make_problems(kind, rng)
        problem = problems[rng.integers(len(problems))]
        if problem.code and rng.random() < 0.5:
            problem = distracted(problem, rng)
        messages, thinking = chat_messages(problem, rng, style)
        declared = [PYTHON_TOOL] if problem.code or rng.random() < 0.3 else None
        out = no_media(tokenizer.render_chat(messages, tools=declared, thinking=thinking), tokenizer)
        if len(out.ids) <= length:
            return kind, out


# ---- packing -------------------------------------------------------------------------------------------------------------------------

def pack(documents, length):
    """First-fit decreasing: lists of documents whose lengths sum to at most `length`; every document is used."""
    rows, space = [], []
    for doc in sorted(documents, key=lambda d: -len(d.ids)):
        assert 0 < len(doc.ids) <= length, f"a document of {len(doc.ids)} tokens does not fit a row of {length}"
        row = next((i for i, free in enumerate(space) if free >= len(doc.ids)), None)
        if row is None:
            rows.append([]), space.append(length)
            row = -1
        rows[row].append(doc)
        space[row] -= len(doc.ids)
    return rows


def to_batch(rows, length, pad, patch):
    """Rows of documents -> Batch; targets are shifted inside each document, so no document predicts the next one's first token."""
    ids = np.full((len(rows), length), pad, np.int64)                    # (B, T)
    targets = np.full_like(ids, NO_LOSS)
    positions, segments = np.zeros_like(ids), np.zeros_like(ids)
    for r, row in enumerate(rows):
        start = 0
        for number, doc in enumerate(row, 1):
            span, n = slice(start, start + len(doc.ids)), len(doc.ids)
            ids[r, span], positions[r, span], segments[r, span] = doc.ids, np.arange(n), number
            targets[r, start:start + n - 1] = np.where(doc.mask[1:], doc.ids[1:], NO_LOSS)
            for place, token in doc.shown.items():
                ids[r, start + place] = token
            start += n
    clips = [clip for row in rows for doc in row for clip in doc.clips]
    unique = list({id(clip): clip for clip in clips}.values())          # the responses to one problem share its picture: encode it once
    patches, grid_thw = patchify(unique, patch) if clips else (None, [])
    media = shared_media(clips, unique, patch) if len(unique) < len(clips) else None
    return Batch(*(torch.from_numpy(a) for a in (ids, targets, positions, segments)), patches, grid_thw, media)


def packed(documents, pad, patch):
    """(Batch of all documents, numbers of the documents in reading order: packing sorts by length). Rows are of 64 tokens or a multiple."""
    length, numbers = -(-max(len(doc.ids) for doc in documents) // 64) * 64, {id(doc): n for n, doc in enumerate(documents)}
    rows = pack(documents, length)
    return to_batch(rows, length, pad, patch), [numbers[id(doc)] for row in rows for doc in row]


def shared_media(clips, unique, patch):
    """Which media token of the `unique` clips stands at each media token of `clips`: (M,)."""
    ends = np.cumsum([clip.tokens(patch) for clip in unique])
    spans = {id(clip): np.arange(end - clip.tokens(patch), end) for clip, end in zip(unique, ends)}
    return torch.from_numpy(np.concatenate([spans[id(clip)] for clip in clips]))


# ---- the stream ----------------------------------------------------------------------------------------------------------------------

@dataclass
class Batches(Dataset):
    """Step `step` of a stage, made from these settings, the step and the shard alone: __getitem__ returns ([Batch of each shard], counts).

    A step has SHARDS shards; with several processes each makes its own ones, with one process they are micro-batches. Same data, same
    gradients, whatever the number of processes.
    """
    stage: str
    tokenizer: Tokenizer
    vision: object                  # VisionConfig
    seed: int
    documents: int                  # a step, over all shards
    length: int                     # of a row, tokens
    steps: int                      # of the whole stage
    first: int = 0                  # where to go on
    rank: int = 0
    world: int = 1

    def __len__(self):
        return self.steps - self.first

    def __getitem__(self, index):
        made = [self.shard(self.first + index, shard) for shard in range(self.rank, SHARDS, self.world)]
        batches, totals = [batch for batch, _ in made], {}
        for _, count in made:
            totals = {name: totals.get(name, 0) + value for name, value in count.items()}
        return batches, totals

    def shard(self, step, shard):
        rng = np.random.default_rng([self.seed, STAGES[self.stage], step, shard])
        number = self.documents // SHARDS
        if self.stage == "pretrain":
            drawn = [pretrain_document(rng, self.tokenizer, self.vision, self.length, kind, step / self.steps)
                     for kind in draw_kinds(rng, PRETRAIN, number)]
        elif self.stage == "longctx":
            drawn = [longctx_document(rng, self.tokenizer, self.vision, self.length, kind) for kind in draw_kinds(rng, LONGCTX, number)]
        else:
            drawn = [sft_document(rng, self.tokenizer, self.vision, self.length) for _ in range(number)]
        return self.batch(drawn)

    def batch(self, drawn):
        """(Batch, counts) of [(kind, document)]."""
        batch = to_batch(pack([doc for _, doc in drawn], self.length), self.length, self.tokenizer.pad, self.vision.patch)
        return batch, counts(drawn, self.tokenizer) | {"targets": batch.denominator, "rows": batch.rows}


def counts(drawn, tokenizer):
    """What a batch holds, in tokens: all, trained on, of pictures, of clips."""
    media = {"image": 0, "video": 0}
    for _, doc in drawn:
        for clip in doc.clips:
            media[clip.kind] += clip.tokens(tokenizer.patch)
    return {"tokens": sum(len(doc.ids) for _, doc in drawn), "learned": sum(sum(doc.mask) for _, doc in drawn),
            "image_tokens": media["image"], "clip_tokens": media["video"], "documents": len(drawn)}


def stream(batches, workers=1):
    """Iterate over batches, in order, with worker processes ahead of the trainer."""
    return DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4, worker_init_fn=leave_signals_to_the_trainer)


def leave_signals_to_the_trainer(worker):
    """Ctrl-C reaches every process of a terminal, TERM every process of a service; the trainer decides what they mean."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def corpus(size):
    """Text to train the tokenizer on: documents and chats as the run will read them, without media, and every name many times."""
    rng = np.random.default_rng([0, 0])
    twins = {"scene": "scene_text", "counting": "counting_text", "naming": "category", "ocr": "ocr_text", "clip": "clip_text", "interleaved": "tool"}
    for _ in range(size):
        kind = str(rng.choice(list(PRETRAIN)))
        if kind in PLAIN:
            yield "".join(PLAIN[kind](rng, 256))
            continue
        if kind in DENSE:
            yield "".join(words for _, words in DENSE[kind](rng, 1.0))
            continue
        for problem in make_problems(twins.get(kind, kind), rng):
            yield "\n".join([*problem.context, "".join(question_parts(problem, rng.random() < 0.5))])
            yield chat_text(problem, rng)
    for pictogram in content.PICTOGRAMS.values():                        # every name must be cheap to say
        yield f" {pictogram.name}, {pictogram.name}." * 20


def chat_text(problem, rng):
    """The words of a chat, special tokens left out: what its pieces look like to the tokenizer."""
    messages, _ = chat_messages(problem, rng)
    header = "assistant user image video " * 3 + "python|tool tool_declare ## Return of functions.python:0\n"
    pieces = [header, declare_tools([PYTHON_TOOL])]
    pieces += [message.get("thinking", "") + "\n" + str(message["content"]) for message in messages]
    pieces += [json.dumps(call["arguments"]) for message in messages for call in message.get("tool_calls", ())]
    return "\n".join(pieces)
