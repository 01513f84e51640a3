"""Batched generation: prefill once, decode many, tools in the loop, log-probabilities recorded (K2.5 App. D: token-in-token-out).

Prompts are sorted by length, left-padded and run once; the latents of Multi-head Latent Attention stay in a cache, so that each further
token costs one column. Rows that finished are dropped from the batch; when half of it is free, the next prompts take their place. The k
responses to a problem share its prefill, and everything that shares a picture shares its encoding. Left out: paged caches, top-p, and a
cache that survives a tool call (a conversation is prefilled again in every turn).
"""
import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .data import shared_media
from .errors import BadInput
from .language import Cache
from .tokenizer import Rendered, Tokenizer
from .vision import patchify, prepare_image

ROWS = 512                      # decoded together (ours; on two cores 512 rows give 1.4 x the tokens/s of 128)
PREFILL_TOKENS = 32768          # rows x longest prompt of a batch: bounds the cache and the (rows, heads, T, T) attention logits of a prefill (ours)
TOOL_CHARACTERS = 800           # of a tool's text that the model gets to read (ours)


@dataclass
class Response:
    """What follows a prompt. ids, logprobs and sampled have one entry per token.

    logprobs: log pi(token) at the sampling temperature (at 1 when greedy), 0 for forced tokens. sampled: False for tool output, which was
    forced on the model and is never trained on. versions: of the policy that sampled it (Engine.version). clips: pictures behind media_pad
    tokens in forced output. tools: per tool call, whether it ran without an error. stop: "end", "repeat" where it said the same again and
    again, or "length" where it ran out of tokens, context or turns. parsed: the last turn, see Tokenizer.parse_response.
    """
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    clips: list = field(default_factory=list)
    tools: list[bool] = field(default_factory=list)
    stop: str = "length"
    parsed: dict | None = None

    def add(self, ids: list[int], logprobs: list[float], sampled: bool, version: int = 0) -> None:
        """Append tokens of one origin."""
        self.ids += ids
        self.logprobs += logprobs
        self.sampled += [sampled] * len(ids)
        self.versions += [version] * len(ids)

    @property
    def written(self) -> int:
        """Tokens that the model sampled itself: what length rewards and savings count."""
        return sum(self.sampled)

    def own_logprobs(self) -> list[float]:
        """Of the tokens that the model sampled itself, in their order."""
        return [logprob for logprob, own in zip(self.logprobs, self.sampled) if own]

    def trajectory(self, prompt: Rendered) -> Rendered:
        """Prompt and response as one document whose mask is the sampled tokens: what the next turn continues and what RL trains on."""
        return Rendered(prompt.ids + self.ids, [False] * len(prompt.ids) + self.sampled, prompt.clips + self.clips)


@dataclass
class Conversation:
    """A prompt and the response to it, under way. sandbox: None where no tool is declared. turns, max_new: how many more turns it may take,
    tokens in each. key: its random numbers. over: nothing more will come."""
    prompt: Rendered
    key: tuple
    max_new: int
    turns: int = 1
    sandbox: object = None
    response: Response = field(default_factory=Response)
    segments: int = 0               # samplings so far: each draws random numbers of its own
    turn_tokens: int = 0            # of the turn under way
    asks: bool = False              # waits for the tool
    over: bool = False

    def context(self) -> Rendered:
        """What the next token follows; the prompt itself before the first one, so that conversations with one prompt share its prefill."""
        return self.response.trajectory(self.prompt) if self.response.ids else self.prompt

    def room(self) -> int:
        """Tokens that the turn may still take."""
        return self.max_new - self.turn_tokens


@dataclass
class Lines:
    """The responses that are being decoded, one line of the batch each. rows: which response a line is; cache: what it looks back at;
    hidden (B, d): of its last token; positions (B,): of the next one."""
    rows: list[int]
    cache: Cache
    hidden: torch.Tensor
    positions: torch.Tensor

    def admit(self, rows: list[int], cache: Cache, hidden: torch.Tensor, lengths: list[int], room: int) -> None:
        """Lines for more responses, as `_prefill` left them; room: tokens that a line may still take."""
        self.cache.join(cache, room)
        self.rows, self.hidden = self.rows + rows, torch.cat([self.hidden.to(hidden.dtype), hidden])
        self.positions = torch.cat([self.positions, self.positions.new_tensor(lengths)])

    def keep(self, lines: list[int], tokens: torch.Tensor) -> torch.Tensor:
        """Drops all other lines; returns the tokens (B,) of those kept."""
        index = self.positions.new_tensor(lines)
        self.cache.select(index)
        self.rows, self.hidden, self.positions = [self.rows[i] for i in lines], self.hidden[index], self.positions[index]
        return tokens[index]

    def advance(self, language, tokens: torch.Tensor) -> None:
        """The chosen tokens (B,) go through the model."""
        self.hidden = language(language.embed(tokens)[:, None], self.positions[:, None], None, self.cache)[:, 0]
        self.positions = self.positions + 1


class Engine:
    """Generates with a NanoKimi model, on the device where its weights are. precision: "fp32", or "bf16" for autocast (faster where the matmuls are large)."""

    def __init__(self, model, tokenizer: Tokenizer, precision: str = "fp32"):
        assert precision in ("fp32", "bf16"), f"precision is fp32 or bf16, got {precision}"
        model.expect(tokenizer)
        self.model, self.tokenizer, self.device, self.precision = model, tokenizer, model.language.head.weight.device, precision
        self.rows, self.version = ROWS, 0                                       # version: of the weights; a trainer counts it up

    @classmethod
    def lowered(cls, model, tokenizer: Tokenizer) -> "Engine":
        """An engine whose weights are a bf16 copy of the model's, half the memory; what routes tokens stays fp32, as in the released model.
        `receive` brings it up to date."""
        lower = copy.deepcopy(model).requires_grad_(False).eval()
        for name, p in lower.named_parameters():
            if "router" not in name:
                p.data = p.data.bfloat16()
        return cls(lower, tokenizer, "bf16")

    def receive(self, model) -> None:
        """The weights that training left in `model`, rounded to this engine's precision; nothing to do where both share one model."""
        if model is not self.model:
            with torch.no_grad():
                for mine, learned in zip(self.model.state_dict().values(), model.state_dict().values()):
                    mine.copy_(learned)

    # ---------------------------------------------------------------- one turn
    def generate(self, prompts: list[Rendered], max_new: int, temperature: float = 0.0, seed: int = 0, k: int = 1) -> list[list[Response]]:
        """k responses to each prompt, in the order of the prompts; temperature 0 is greedy.

        Random numbers belong to (seed, prompt, sample), so a response does not depend on what else is in the batch (up to float noise).
        A response ends with im_end or eos, after max_new tokens, where the context is full, or where it repeats itself.
        Raises BadInput for a prompt that leaves no room in the context, and for a model whose output is not a number.
        """
        out = self._generate([p for p in prompts for _ in range(k)], [(seed, i, j) for i in range(len(prompts)) for j in range(k)],
                             [max_new] * len(prompts) * k, temperature)
        return [out[i * k:(i + 1) * k] for i in range(len(prompts))]

    def _generate(self, contexts: list[Rendered], keys, limits: list[int], temperature: float) -> list[Response]:
        """One response to each context, at most `limits` tokens each. Contexts that are the same object are computed once."""
        out = [Response() for _ in contexts]
        order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i].ids))       # neighbours need little padding, and share prefills
        with self._evaluating(), self._inference():
            for row, token, logprob in self._decode(*([things[i] for i in order] for things in (contexts, keys, limits)), temperature):
                out[order[row]].add([token], [logprob], True, self.version)
        for response, context in zip(out, contexts):
            self._finish(response, context)
        return out

    def _finish(self, response: Response, prompt: Rendered) -> None:
        ended = bool(response.ids) and response.ids[-1] in self.tokenizer.stop_ids
        response.stop = "end" if ended else "repeat" if repeats(response.ids) else "length"
        response.parsed = self.tokenizer.parse_response(response.ids, opened=self.tokenizer.thinks(prompt))

    @contextmanager
    def _evaluating(self):
        """Evaluation mode (training statistics off); the model's own mode is restored."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    @contextmanager
    def _inference(self):
        """No autograd, and the precision; both belong to the thread."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    # ---------------------------------------------------------------- the loop
    def _decode(self, contexts, keys, limits, temperature: float):
        """Yields (row, token, logprob) for every live row, step by step. One transfer from the device a step.

        When half of the rows that a batch may have are free, the next contexts take their place: longest first, as they come.
        """
        limits = [self._room(context, limit) for context, limit in zip(contexts, limits)]
        uniforms = self._uniforms(keys, max(limits)) if temperature > 0 and limits else None        # (rows, steps)
        waiting, said, ended = [row for row, limit in enumerate(limits) if limit][::-1], [[] for _ in limits], [False] * len(limits)
        lines = Lines([], self._cache(0, 0), self.model.language.head.weight.new_zeros(0, self.model.config.language.dim),
                      torch.zeros(0, dtype=torch.long, device=self.device))
        while waiting or lines.rows:
            most = self.most_rows([contexts[row] for row in lines.rows + waiting[-1:]]) if waiting else 0
            if 2 * len(lines.rows) <= most:
                new = [waiting.pop() for _ in range(min(len(waiting), most - len(lines.rows)))]
                hidden, cache = self._prefill([contexts[row] for row in new])
                lines.admit(new, cache, hidden, [len(contexts[row].ids) for row in new],
                            room=max(limits[row] - len(said[row]) for row in lines.rows + new))
            drawn = None if uniforms is None else uniforms[lines.rows, [min(len(said[row]), uniforms.shape[1] - 1) for row in lines.rows]]
            tokens, logprobs = self._choose(lines.hidden, temperature, drawn)
            for row, token, logprob in zip(lines.rows, *torch.stack([tokens.float(), logprobs]).tolist()):
                if logprob != logprob:
                    raise BadInput("the model's output is not a number: its training diverged; take another stage, or train again.")
                if not ended[row]:                                              # one that ended runs on until it is dropped
                    yield row, int(token), logprob
                    said[row].append(int(token))
                    count = len(said[row])
                    ended[row] = token in self.tokenizer.stop_ids or count == limits[row] or count % 8 == 0 and repeats(said[row])
            live = [i for i, row in enumerate(lines.rows) if not ended[row]]
            if len(live) <= 0.8 * len(lines.rows) or 2 * len(live) <= most:         # a copy of the cache: not for every row
                tokens = lines.keep(live, tokens)
            if lines.rows:
                lines.advance(self.model.language, tokens)

    def most_rows(self, contexts) -> int:
        """How many rows a batch may have that holds these."""
        return max(1, min(self.rows, PREFILL_TOKENS // max(len(context.ids) for context in contexts)))

    def _room(self, prompt: Rendered, max_new: int) -> int:
        context = self.model.config.language.context
        if not 0 < len(prompt.ids) < context:
            raise BadInput(f"a prompt of {len(prompt.ids)} tokens leaves no room in a context of {context}: ask less, or about fewer frames")
        return min(max_new, context - len(prompt.ids))

    def _cache(self, rows: int, capacity: int) -> Cache:
        return Cache(self.model.config.language, rows, capacity, self.device, torch.bfloat16 if self.precision == "bf16" else torch.float32)

    def _prefill(self, contexts):
        """Runs every different context once, left-padded -> (hidden of the last token (B, d), cache of B rows)."""
        different = {id(context): context for context in contexts}              # the k responses to a problem share its context
        line = {key: i for i, key in enumerate(different)}
        prompts = list(different.values())
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        B, T = len(prompts), int(lengths.max())
        ids = torch.full((B, T), self.tokenizer.pad)
        for row, prompt in zip(ids, prompts):
            row[T - len(prompt.ids):] = torch.tensor(prompt.ids)
        positions = torch.arange(T) - (T - lengths)[:, None]                    # (B, T), negative on padding
        ids, positions = ids.to(self.device), positions.to(self.device)
        cache = self._cache(B, T)
        clips = list({id(clip): clip for prompt in prompts for clip in prompt.clips}.values())     # conversations share pictures, too
        patches, grids = patchify(clips, self.tokenizer.patch) if clips else (None, [])
        order = shared_media([clip for prompt in prompts for clip in prompt.clips], clips, self.tokenizer.patch) if clips else None
        to = lambda tensor: None if tensor is None else tensor.to(self.device)
        hidden = self.model.language(self.model.embed(ids, to(patches), grids, to(order)), positions.clamp(min=0), (positions >= 0).long(), cache)
        lines = torch.tensor([line[id(context)] for context in contexts], device=self.device)
        if len(lines) > B:
            cache.select(lines)
        return hidden[lines, -1], cache

    def _uniforms(self, keys, steps: int) -> torch.Tensor:
        """One random number per row and step, from a generator of the row's own: (rows, steps) fp32."""
        return torch.from_numpy(np.stack([np.random.default_rng(key).random(steps, np.float32) for key in keys])).to(self.device)

    def _choose(self, hidden: torch.Tensor, temperature: float, uniforms: torch.Tensor | None):
        """hidden (B, d) -> (tokens (B,), log-probabilities (B,)). media_pad is never chosen: no picture would stand behind it."""
        logits = self.model.language.head(hidden).float()                       # (B, V)
        logits = logits / temperature if temperature > 0 else logits
        logprobs = logits.log_softmax(-1)
        allowed = logprobs.clone()
        allowed[:, self.tokenizer.media_pad] = float("-inf")
        if uniforms is None:
            tokens = allowed.argmax(-1)
        else:                                                                   # invert the cumulative distribution
            cdf = allowed.exp().cumsum(-1)
            tokens = torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

    # ---------------------------------------------------------------- tools in the loop
    def advance(self, talks: list["Conversation"], temperature: float = 0.0, segment: int | None = None) -> None:
        """Carries conversations on, each until it is over or has sampled `segment` more tokens (k1.5 2.6: partial rollouts): turn by turn,
        tool calls run and answered in between; pictures that a tool returns re-enter through the encoder. What was kept is prefilled
        again under the weights of today; no cache outlives this call."""
        left = {id(talk): segment if segment is not None else 10 ** 9 for talk in talks}
        live = [talk for talk in talks if not talk.over]
        while live:
            contexts = [talk.context() for talk in live]
            limits = [min(talk.room(), left[id(talk)]) for talk in live]
            keys = [(*talk.key, talk.segments) for talk in live]
            for talk, new in zip(live, self._generate(contexts, keys, limits, temperature)):
                left[id(talk)] -= len(new.ids)
                self._take(talk, new)
            asked = [talk for talk in live if talk.asks]
            self._answer(asked)
            live = [talk for talk in live if not talk.over and left[id(talk)] > 0]

    def _take(self, talk: "Conversation", new: Response) -> None:
        """Adds what was sampled; notes whether the turn, and with it perhaps the conversation, is over."""
        response = talk.response
        response.add(new.ids, new.logprobs, True, self.version)
        talk.segments, talk.turn_tokens = talk.segments + 1, talk.turn_tokens + len(new.ids)
        turn = Response(response.ids[len(response.ids) - talk.turn_tokens:])
        self._finish(turn, talk.prompt)
        response.stop, response.parsed = turn.stop, turn.parsed
        full = len(talk.prompt.ids) + len(response.ids) >= self.model.config.language.context
        talk.asks = turn.stop == "end" and talk.sandbox is not None and turn.parsed["well_formed"] and bool(turn.parsed["tool_calls"])
        talk.over = not talk.asks and (turn.stop != "length" or talk.turn_tokens >= talk.max_new or full)

    def _answer(self, asked: list["Conversation"]) -> None:
        """Runs the calls of these conversations and forces the results on them; those without a turn or room for an answer are over."""
        able = [talk for talk in asked if talk.turns > 1]
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:     # no more than this process has: a run's time limit is wall clock
            answers = list(threads.map(self._tool_turn, able))
        for talk in asked:
            talk.over, talk.asks, talk.response.stop = True, False, "length"
        for talk, forced in zip(able, answers):
            if len(talk.prompt.ids) + len(talk.response.ids) + len(forced.ids) < self.model.config.language.context:
                talk.response.add(forced.ids, [0.0] * len(forced.ids), False, self.version)
                talk.response.clips += forced.clips
                talk.over, talk.turn_tokens, talk.turns = False, 0, talk.turns - 1

    def _tool_turn(self, talk: "Conversation") -> Rendered:
        """Run the tool calls of the response's last turn: their results and the next assistant header, to be forced on the model."""
        response, prompt = talk.response, talk.prompt
        calls = response.parsed["tool_calls"]
        first = (prompt.ids + response.ids).count(self.tokenizer.call_begin) - len(calls)
        results = [self.call_tool(call, talk.sandbox) for call in calls]
        response.tools += [ok for _, ok in results]
        names, parts = [call["name"] for call in calls], [parts for parts, _ in results]
        return self.tokenizer.render_results(names, parts, first, self.tokenizer.thinks(prompt))

    def call_tool(self, call: dict, sandbox) -> tuple[list, bool]:
        """(one call's result as message parts, whether it ran). The model may write anything: the answer to nonsense is a sentence."""
        code = call["arguments"].get("code")
        if call["name"] != "python" or not isinstance(code, str):
            return ['the only tool is python, its argument {"code": string}'], False
        result = sandbox.run(code)
        text, half = result.text, TOOL_CHARACTERS // 2
        if len(text) > TOOL_CHARACTERS:                                         # an error stands at the end
            text = text[:half] + " ... (cut) ... " + text[-half:]
        pictures = [prepare_image(image, self.model.config.vision) for image in result.images]
        return [text if text or pictures else "(no output)", *pictures], result.ok

    # ---------------------------------------------------------------- for people
    def stream(self, prompt: Rendered, max_new: int, temperature: float = 0.0, seed: int = 0):
        """Yields the response's text piece by piece, special tokens as pieces of their own; the generator returns the Response."""
        response, shown = Response(), 0
        for token, logprob in self._one_by_one(prompt, max_new, temperature, seed):
            special = token >= len(self.tokenizer.ranks)
            if special and shown < len(response.ids):
                yield self.tokenizer.decode(response.ids[shown:])
                shown = len(response.ids)
            response.add([token], [logprob], True)
            text = self.tokenizer.decode(response.ids[shown:])
            if special or not text.endswith("\ufffd"):                           # else a character is still incomplete
                yield text
                shown = len(response.ids)
        if shown < len(response.ids):
            yield self.tokenizer.decode(response.ids[shown:])
        self._finish(response, prompt)
        return response

    def _one_by_one(self, prompt: Rendered, max_new: int, temperature: float, seed: int):
        """(token, logprob) of one response; inference mode is not held while the caller has control."""
        steps = self._decode([prompt], [(seed, 0, 0)], [max_new], temperature)
        while True:
            with self._evaluating(), self._inference():
                step = next(steps, None)
            if step is None:
                return
            yield step[1:]


def engine_of(run: Path, model) -> Engine:
    """An engine for a model of the run, with the run's tokenizer."""
    return Engine(model, Tokenizer.load(run / "tokenizer", model.config.vision.patch))


def repeats(ids: list[int], times: int = 4, least: int = 24) -> bool:
    """Whether the last `least` tokens or more are one piece said `times` times (k1.5 2.6 detects repetition; the rule is ours)."""
    for period in range(1, min(32, len(ids) // times) + 1):                     # longer pieces are not looked for
        tail = ids[-max(times * period, least):]
        if len(tail) >= least and all(a == b for a, b in zip(tail, tail[period:])):
            return True
    return False
