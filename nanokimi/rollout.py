"""Rollouts: which problems are asked, the responses to them, their rewards, and the batches that train on them.

An iteration draws problems from a pool, samples k responses to each with the current weights, verifies them, and packs the groups whose
rewards differ. Domains are abilities, not modalities (K2.5 2.3): each has pictures or clips, and text where a twin exists.
Left out: asynchronous workers; rollout and training take turns on one set of weights (k1.5's hybrid deployment in small: no
hand-over, unless `rl.py --rollout bf16` asks for a copy in lower precision). Where there are two cores, two processes do so, each with half
of the problems (nanokimi/team.py).
"""
import copy
from dataclasses import dataclass, field, replace

import numpy as np

from . import data, team
from .engine import Conversation, Engine, Response
from .errors import BadInput
from .model import Batch
from .policy import length_reward
from .sandbox import Memo, Sandbox
from .tokenizer import Rendered, Tokenizer
from .world import problems as world, tools, verify
from .world.types import Image, Problem

MAKERS = {                      # (ability, modality) -> problems of the train split; what a problem needs beyond its ability is drawn again
    ("perception", "image"): lambda rng: world.scene_problems(rng, "train"),
    ("counting", "image"): lambda rng: world.counting_problems(rng, "train")[:1],
    ("grounding", "image"): lambda rng: world.scene_problems(rng, "train"),
    ("reasoning", "image"): lambda rng: world.scene_problems(rng, "train"),
    ("ocr", "image"): lambda rng: world.ocr_problems(rng, "train"),
    ("knowledge", "image"): lambda rng: world.naming_problems(rng, "train"),
    ("code", "image"): lambda rng: tools.picture_tool_problems(rng, "train"),
    ("video", "video"): lambda rng: CLIPS[rng.integers(len(CLIPS))](rng, "train"),
    ("counting", "text"): lambda rng: world.scene_problems(rng, "train", modality="text"),
    ("reasoning", "text"): lambda rng: [lambda: world.chat_arithmetic_problems(rng, "train"),
                                        lambda: world.scene_problems(rng, "train", modality="text")][rng.integers(2)](),
    ("knowledge", "text"): lambda rng: world.category_problems(rng, "train")[1:],
    ("code", "text"): lambda rng: tools.tool_problems(rng, "train"),
    ("grounding", "text"): lambda rng: world.placed_problems(rng, "train"),
    ("video", "text"): lambda rng: world.clip_twin_problems(rng, "train"),
}
CLIPS = (world.direction_problems, world.appear_problems, world.order_problems)
WEIGHTS = {("video", "video"): 2}                                         # clips are asked three kinds of questions; all others weigh 1 (ours)
STREAM = 7                      # separates RL's random numbers from those of pre-training and the cold start
MAX_TURNS = 3                   # calls of the tool, plus one (ours)
MAX_NEW = 256                   # tokens a turn (ours): a turn that finds its way through a maze takes 156
OPEN = 96                       # tool processes at a time


# ---- problems ------------------------------------------------------------------------------------------------------------------------

@dataclass
class Item:
    """One problem of the pool as a recipe (it is drawn again from its seed), and how often it was solved."""
    ability: str
    modality: str
    seed: int
    difficulty: float = 0.5     # 1 - pass rate of the starting model (k1.5 2.1)
    success: float = 0.5        # moving average of later pass rates
    guessed: float = 0.0        # pass rate of the starting model without thinking

    def problem(self) -> Problem:
        """The problem, drawn from its seed, again and again until it needs the ability."""
        rng = np.random.default_rng([STREAM, self.seed])
        while True:
            fitting = [p for p in MAKERS[self.ability, self.modality](rng) if p.ability == self.ability]
            if fitting:
                return fitting[rng.integers(len(fitting))]


def make_pool(number: int, visual: float, seed: int) -> list[Item]:
    """`number` recipes, a share `visual` of them on pictures and clips, abilities by WEIGHTS within each part."""
    seen, read = ([key for key in MAKERS if (key[1] != "text") == wanted for _ in range(WEIGHTS.get(key, 1))] for wanted in (True, False))
    keys = [seen[i % len(seen)] for i in range(round(visual * number))]
    keys += [read[i % len(read)] for i in range(number - len(keys))]
    return [Item(*key, seed=seed * 10 ** 6 + i) for i, key in enumerate(keys)]


def choose(pool: list[Item], number: int, rng, easiest: float = 1.0, prioritised: bool = True) -> list[Item]:
    """Draws different items. Curriculum: only the `easiest` share by difficulty. Prioritised: in proportion to 1 - success (k1.5 2.3.4);
    a floor of 0.05 (ours) keeps an eye on what seems solved."""
    allowed = sorted(pool, key=lambda item: item.difficulty)[:max(number, round(easiest * len(pool)))]
    weights = np.array([max(0.05, 1 - item.success) if prioritised else 1.0 for item in allowed])
    picks = rng.choice(len(allowed), size=min(number, len(allowed)), replace=False, p=weights / weights.sum())
    return [allowed[i] for i in picks]


# ---- responses -----------------------------------------------------------------------------------------------------------------------

@dataclass
class Group:
    """The k responses to one problem, under way or finished; then their rewards and whether they are right. tools: whether Python is declared.
    item: None outside of RL."""
    problem: Problem
    talks: list[Conversation]
    tools: bool
    item: Item | None = None
    rewards: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    @property
    def responses(self) -> list[Response]:
        return [talk.response for talk in self.talks]

    @property
    def lengths(self) -> list[int]:
        """Tokens that the model wrote in each response."""
        return [response.written for response in self.responses]

    @property
    def over(self) -> bool:
        """Whether every response is finished."""
        return all(talk.over for talk in self.talks)

    @property
    def differs(self) -> bool:
        """Whether the verifiers' rewards, before any length reward, say anything about these responses."""
        return differ(self.rewards)

    def solved(self) -> float:
        """Share of right responses."""
        return float(np.mean(self.right))

    def remember(self) -> None:
        """Tells the problem how often it was solved now: what prioritised sampling looks at (k1.5 2.3.4; the moving average is ours)."""
        self.item.success = 0.5 * self.item.success + 0.5 * self.solved()

    def open_tools(self, engine: Engine) -> None:
        """A tool process for every response that is under way, its variables as they were."""
        memo = Memo()
        for talk in self.talks:
            if self.tools and not talk.over:
                talk.sandbox = Sandbox(tool_media(self.problem), memo)
                if talk.response.ids:
                    replay(engine, talk)                                  # for the variables: the pictures that came back are kept

    def close_tools(self) -> None:
        """Gives the processes back."""
        for talk in self.talks:
            if talk.sandbox is not None:
                talk.sandbox.close()
                talk.sandbox = None


def question_content(problem: Problem, vision) -> list | str:
    """The user's turn: media or text, a space as in training, the question."""
    parts = [data.prepared(part, vision) for part in problem.context]
    return [*parts, f" {problem.question}" if parts else problem.question]


def chat_prompt(problem: Problem, tokenizer: Tokenizer, vision, thinking: bool = True, use_tools: bool = False) -> Rendered:
    """The prompt of a problem in chat, up to where the model begins."""
    declared, user = [data.PYTHON_TOOL] if use_tools else None, {"role": "user", "content": question_content(problem, vision)}
    return tokenizer.render_chat([user], tools=declared, thinking=thinking, generate=True)


def example_chat(problem: Problem, vision, rng, style: str | None = None) -> tuple[list[dict], bool]:
    """(messages, whether it thinks): a chat that answers the problem as the cold start teaches it, but about what is seen. style: of
    thinking (data.chat_messages)."""
    messages, thinking = data.chat_messages(replace(problem, context=()), rng, style)
    messages[0]["content"] = question_content(problem, vision)
    return messages, thinking


def tool_media(problem: Problem) -> dict:
    """What the tool finds as `img`: the pixels of the problem's picture, or of the one that its text is about."""
    pixels = problem.meta.get("img", next((part.pixels for part in problem.context if isinstance(part, Image)), None))
    return {} if pixels is None else {"img": pixels}


def content_of(response: Response) -> str:
    """The answer in a response, without its thinking."""
    return response.parsed["content"].strip()


def begin(engine: Engine, problem: Problem, k: int, max_new: int, key: tuple, thinking: bool = True, tools: bool = False,
          item: Item | None = None) -> Group:
    """A group whose responses are still empty."""
    prompt = chat_prompt(problem, engine.tokenizer, engine.model.config.vision, thinking, tools)
    return Group(problem, [Conversation(prompt, (*key, j), max_new, MAX_TURNS if tools else 1) for j in range(k)], tools, item)


def start(engine: Engine, item: Item, k: int, max_new: int, key: tuple, thinking: bool = True) -> Group:
    """A group for a problem of the pool. The tool is declared where the problem needs it."""
    problem = item.problem()
    return begin(engine, problem, k, max_new, key, thinking, bool(problem.code), item)


def respond(engine: Engine, groups: list[Group], temperature: float = 0.0, segment: int | None = None) -> None:
    """Samples on, each response to its end or `segment` tokens further. Tool processes live no longer than this takes."""
    for part in in_parts(groups):
        try:
            for group in part:
                group.open_tools(engine)
            engine.advance([talk for group in part for talk in group.talks], temperature, segment)
        finally:
            for group in part:
                group.close_tools()


def carry_on(engine: Engine, groups: list[Group], temperature: float, segment: int | None = None) -> tuple[list[Group], list[Group]]:
    """Samples on: (finished groups with rewards, unfinished ones). Each process does its share of the groups, and gets those of the others."""
    mine = team.share(groups)
    respond(engine, mine, temperature, segment)
    for group in mine:
        if group.over:
            thinking = engine.tokenizer.thinks(group.talks[0].prompt)
            group.rewards = [reward(group.problem, response, thinking) for response in group.responses]
            group.right = [r > 0 and verify.correct(group.problem, content_of(x)) for r, x in zip(group.rewards, group.responses)]
    for process, sampled in enumerate(team.gather([exported(group) for group in mine])):
        if process != team.rank():
            for group, state in zip(groups[process::team.size()], sampled):
                take_over(group, state)
    return [g for g in groups if g.over], [g for g in groups if not g.over]


COUNTERS = ("segments", "turns", "turn_tokens", "over")
SAMPLED = ("response", *COUNTERS)                                 # of a conversation: what sampling changes


def exported(group: Group) -> tuple:
    """What sampling made of a group, for other processes, which have its problem and prompt already."""
    return group.rewards, group.right, [{name: getattr(talk, name) for name in SAMPLED} for talk in group.talks]


def take_over(group: Group, state: tuple) -> None:
    """Puts what another process sampled into the same group here."""
    group.rewards, group.right, talks = state
    for talk, changes in zip(group.talks, talks):
        vars(talk).update(changes)


def sample(engine: Engine, items: list[Item], k: int, max_new: int, key: tuple, temperature: float = 1.0) -> list[Group]:
    """k responses to every problem, all of them finished."""
    groups = [start(engine, item, k, max_new, (*key, n)) for n, item in enumerate(items)]
    return carry_on(engine, groups, temperature)[0]


def in_parts(groups: list[Group]) -> list[list[Group]]:
    """Groups in parts that do not hold more than OPEN tool processes."""
    parts, used = [[]], 0
    for group in groups:
        needs = len(group.talks) if group.tools else 0
        if parts[-1] and used + needs > OPEN:
            parts.append([])
            used = 0
        parts[-1].append(group)
        used += needs
    return parts


def reward(problem: Problem, response: Response, thinking: bool = True) -> float:
    """The verifier's score of the answer, in [0, 1]. A broken format earns nothing, a good one earns nothing either: it is a condition."""
    thought = not thinking or bool((response.parsed["thinking"] or "").strip())
    fine = response.stop == "end" and response.parsed["well_formed"] and thought
    return verify.score(problem, content_of(response)) if fine else 0.0


def differ(rewards: list[float]) -> bool:
    """Whether there is anything to learn from a group with these rewards: some responses did better than others."""
    return max(rewards) - min(rewards) > 1e-6


def with_length(group: Group, weight: float) -> list[float]:
    """The rewards of a group, with k1.5's length reward (2.3.3) added by weight."""
    return [r + weight * extra for r, extra in zip(group.rewards, length_reward(group.lengths, group.right))] if weight else group.rewards


# ---- what trains -----------------------------------------------------------------------------------------------------------------------

@dataclass
class Training:
    """A micro-batch of whole groups: the model's input, and what the objectives need in the order of its targets (policy.Samples)."""
    batch: Batch
    old: np.ndarray             # (n,) log-probabilities as sampled
    owner: np.ndarray           # (n,) response of each token
    reward: np.ndarray          # (R,)
    baseline: np.ndarray        # (R,)
    spread: np.ndarray          # (R,)


def micro_batches(groups: list[Group], rewards: list[list[float]], patch: int, pad: int, most_tokens: int) -> list[Training]:
    """Packs groups into micro-batches of about `most_tokens` tokens; a group stays whole, so that its picture is encoded once.

    rewards: by group and response, after length penalties and the like.
    """
    out, waiting, size = [], [], 0
    for group, values in zip(groups, rewards):
        tokens = sum(len(talk.prompt.ids) + len(talk.response.ids) for talk in group.talks)
        if waiting and size + tokens > most_tokens:
            out.append(_training(waiting, patch, pad))
            waiting, size = [], 0
        waiting.append((group, values))
        size += tokens
    return out + ([_training(waiting, patch, pad)] if waiting else [])


def _training(pairs, patch, pad) -> Training:
    talks = [talk for group, _ in pairs for talk in group.talks]
    batch, order = data.packed([talk.response.trajectory(talk.prompt) for talk in talks], pad, patch)
    sampled = [talks[n].response.own_logprobs() for n in order]
    owner = np.repeat(order, [len(logprobs) for logprobs in sampled])
    by_response = [(value, np.mean(values), np.std(values)) for _, values in pairs for value in values]
    return Training(batch, np.concatenate(sampled).astype(np.float32), owner, *np.array(by_response, np.float32).T)


# ---- unfinished responses in a checkpoint ---------------------------------------------------------------------------------------------

KEPT = ("ids", "logprobs", "sampled", "versions", "tools", "stop")       # of a response; the rest is made again from these


def freeze(group: Group) -> dict:
    """A group as JSON, a copy: recipes, tokens and counters. Pictures and the tool's variables are made again by `thaw`."""
    talks = [{"response": {name: copy.deepcopy(getattr(talk.response, name)) for name in KEPT},
              **{name: getattr(talk, name) for name in COUNTERS}} for talk in group.talks]
    return {"seed": group.item.seed, "key": list(group.talks[0].key[:-1]), "max_new": group.talks[0].max_new, "talks": talks}


def thaw(engine: Engine, frozen: dict, pool: list[Item]) -> Group:
    """The group again, with the pictures that its tools returned: their calls are run once more. BadInput where one came back otherwise,
    as on a machine so busy that a call ran out of time."""
    item = next(item for item in pool if item.seed == frozen["seed"])
    group = start(engine, item, len(frozen["talks"]), frozen["max_new"], tuple(frozen["key"]))
    memo = Memo()
    for talk, kept in zip(group.talks, frozen["talks"]):
        talk.response = Response(**kept["response"])
        vars(talk).update({name: kept[name] for name in COUNTERS})
        talk.sandbox = Sandbox(tool_media(group.problem), memo) if group.tools else None
        talk.response.clips = replay(engine, talk)
        pads = sum(clip.tokens(engine.tokenizer.patch) for clip in talk.response.clips)
        if pads != talk.response.ids.count(engine.tokenizer.media_pad):
            raise BadInput("a tool call of an unfinished response gave another picture than before: start again when the machine is less busy")
    group.close_tools()
    return group


def replay(engine: Engine, talk: Conversation) -> list:
    """Runs the calls that were answered already, for their variables, and parses the last turn. Returns the pictures that they gave."""
    response, turns, clips, opened = talk.response, [[]], [], engine.tokenizer.thinks(talk.prompt)
    for token, sampled in zip(response.ids, response.sampled):
        if sampled:
            turns[-1].append(token)
        elif turns[-1]:
            turns.append([])
    for ids in turns[:-1]:
        for call in engine.tokenizer.parse_response(ids, opened=opened)["tool_calls"]:
            parts, _ = engine.call_tool(call, talk.sandbox)
            clips += [part for part in parts if not isinstance(part, str)]
    response.parsed = engine.tokenizer.parse_response(turns[-1], opened=opened)
    return clips


# ---- curation (k1.5 2.1) ----------------------------------------------------------------------------------------------------------------

def curate(engine: Engine, pool: list[Item], seed: int, max_new: int, tries: int = 10, guesses: int = 8, temperature: float = 1.2) -> dict:
    """Difficulty of every item from `tries` samples at high temperature; drops, in place, what is always solved, and what is guessed
    without thinking in more than half of `guesses` tries. The paper drops a problem at the first lucky guess; here many answers are one
    of eight words, so that would drop what is merely short (ours). Returns how many were asked
    and kept, and the shares removed."""
    asked = len(pool)
    for number, thinking in ((tries, True), (guesses, False)):
        groups = [start(engine, item, number, max_new, (STREAM, seed, item.seed, int(thinking)), thinking) for item in pool]
        done, _ = carry_on(engine, groups, temperature)
        for group in done:
            if thinking:
                group.item.difficulty = 1 - group.solved()
                group.item.success = group.solved()
            else:
                group.item.guessed = group.solved()
    easy, guessed = ([item for item in pool if test(item)] for test in (lambda i: i.difficulty == 0, lambda i: i.guessed > 0.5))
    pool[:] = [item for item in pool if item.difficulty > 0 and item.guessed <= 0.5]
    return {"asked": asked, "always_solved": len(easy) / asked, "guessed": len(guessed) / asked, "kept": len(pool)}
