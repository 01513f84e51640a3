"""Talk to a trained model: text, pictures, clips, tools.

    python sample.py "What is in the picture?" --image FILE
    python sample.py "Which way does it move?" --video clip.gif
    python sample.py                                                    a chat: /image FILE, /video FILE, /new, /quit
"""
import argparse
import sys
from pathlib import Path

import torch

from nanokimi.checkpoint import RELEASED, finished, need, newest_stage
from nanokimi.data import PYTHON_TOOL, prepared
from nanokimi.engine import Engine, engine_of
from nanokimi.errors import MOST_SEED, BadInput, command, first_words, number, sentence
from nanokimi.media import is_animated, load_image, load_video
from nanokimi.model import load
from nanokimi.rollout import MAX_NEW, MAX_TURNS
from nanokimi.sandbox import Sandbox
from nanokimi.tokenizer import SPECIALS
from nanokimi.vision import prepare_image

KNOWS = ("It knows small pictures and clips of coloured shapes, pictograms, flags and handwritten digits, capitals, and arithmetic to "
         "three digits. Ask about those; about the rest of the world it knows nothing.")
BASE = "It is a base model, which has never seen a chat: it goes on with a text. The stage that answers is sft."
COMMANDS = "/image FILE, /video FILE, /new, /quit"


def temperature(text: str) -> float:
    """0 for the likeliest token, else at least 0.01: logits are divided by it."""
    value = number(float, 0)(text)
    if 0 < value < 0.01:
        raise argparse.ArgumentTypeError("want 0, or 0.01 and more")
    return value


def parse_arguments(arguments=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", help="the question; without it, a chat")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture (may be repeated)")
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help=".gif, animated .webp / .png, a folder of frames, or .mp4 and friends (pip install av); two frames a second are read")
    parser.add_argument("--run", metavar="DIR", help="what train.py wrote (default: runs/nano, or before its cold start is finished the checkpoints of results/)")
    parser.add_argument("--stage", help="pretrain, longctx, sft, rl, short, l2s-dpo, ... (default: the newest of training and RL)")
    parser.add_argument("--instant", dest="thinking", action="store_false", help="answer at once, without thinking first")
    parser.add_argument("--tools", action="store_true", help="let the model run Python on the picture, in a sandbox")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 = always the likeliest token")
    parser.add_argument("--seed", type=number(int, 0, MOST_SEED), default=0)
    parser.add_argument("--max-new", type=number(int, 1), default=MAX_NEW, metavar="N", help="tokens of an answer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plain", action="store_true", help="no colours, no first line")
    return parser.parse_args(arguments)


# ---------------------------------------------------------------------------------------------------------------- the model

def chosen_run(asked: str | None) -> Path:
    """The run that was asked for; else runs/nano, once its cold start is finished; else the released checkpoints."""
    return Path(asked or ("runs/nano" if finished("runs/nano/sft") else RELEASED))


def open_engine(run: Path, device: str, stage: str | None = None) -> tuple[Engine, str]:
    """(engine, a line about the model)."""
    if stage:
        need(run, stage)
    stage = run / stage if stage else newest_stage(run)
    torch.set_num_threads(1)                                                    # one row: the operations are too small to share
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"no device {device}: {first_words(error)}") from error
    model = load(stage, device)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return engine_of(run, model), f"nanokimi, {size:.1f} million parameters, {run.name}/{stage.name}. {BASE if stage.name in ('pretrain', 'longctx') else KNOWS}"


# ---------------------------------------------------------------------------------------------------------------- the terminal

def clean(text: str) -> str:
    """Printable characters only: a model must not steer the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def writer(plain: bool):
    """write(text, dim): straight to standard output, dim where colours are wanted."""
    if plain:
        return lambda text, dim=False: print(clean(text), end="", flush=True)
    from rich.console import Console
    from rich.text import Text
    console = Console(highlight=False)
    return lambda text, dim=False: console.print(Text(clean(text), style="dim" if dim else ""), end="", soft_wrap=True)


def show(stream, write, thinking: bool):
    """Prints a response as it comes, thoughts and tool calls dim; returns the Response."""
    dim = thinking
    while True:
        try:
            piece = next(stream)
        except StopIteration as stop:
            write("\n")
            return stop.value
        if piece == SPECIALS["end_think"]:
            write("\n")
            dim = False
        elif piece == SPECIALS["section_begin"]:
            dim = True
        elif piece not in SPECIALS.values():
            write(piece, dim)


# ---------------------------------------------------------------------------------------------------------------- the conversation

class Chat:
    """One conversation: its messages, the media that wait for the next question, and the sandbox that sees them as `img` and `clip`. asked: the
    sandbox's media when the last question was put."""

    def __init__(self, engine: Engine, options: argparse.Namespace, write):
        self.engine, self.options, self.write = engine, options, write
        self.messages, self.waiting, self.sandbox, self.media, self.asked = [], [], Sandbox(), {}, {}

    def add_image(self, path: str) -> None:
        """Attach a picture to the next question."""
        pixels = load_image(path)
        if is_animated(path):
            self.write("(the first frame of an animation: as a video, all are seen)\n", True)
        self.waiting.append(prepare_image(pixels, self.engine.model.config.vision))
        self.offer("img", pixels)

    def add_video(self, path: str) -> None:
        """Attach a clip to the next question."""
        clip = load_video(path)
        self.waiting.append(prepared(clip, self.engine.model.config.vision))
        self.offer("clip", clip.frames)

    def offer(self, name: str, array) -> None:
        """Show the media to the tool as well, at full resolution; its variables start afresh."""
        self.equip(self.media | {name: array})

    def equip(self, media: dict) -> None:
        """A new sandbox that sees these media."""
        self.media = media
        self.sandbox.close()
        self.sandbox = Sandbox(media)

    def ask(self, text: str) -> str:
        """Put a question; prints and returns the answer. If that fails or is interrupted, the question has never been put; what does not fit
        the context is not kept for the next one either."""
        content = [*self.waiting, f" {text}" if self.waiting else text]        # a space after media, as in training
        before, self.messages = self.messages, [*self.messages, {"role": "user", "content": content}]
        try:
            answer = self.answer()
        except BaseException as error:
            self.messages = before
            if isinstance(error, BadInput):
                self.waiting = []
                self.equip(self.asked)
            raise
        self.waiting, self.asked = [], self.media
        return answer

    def answer(self) -> str:
        """Turns until one asks for no tool, or as many as in RL."""
        for _ in range(MAX_TURNS):
            response = self.turn()
            parsed, calls = response.parsed, calls_of(response)
            if calls and not self.options.tools:
                self.write("(it would run this in Python: --tools lets it)\n", True)
            if not calls or not self.options.tools:
                return parsed["content"]
            for call in calls:
                self.messages.append({"role": "tool", "content": self.run_tool(call)})
        self.write(f"(no answer after {MAX_TURNS} turns with the tool; ask on, or /new)\n", True)
        return parsed["content"]

    def turn(self):
        """One assistant turn."""
        options = self.options
        prompt = self.engine.tokenizer.render_chat(self.messages, [PYTHON_TOOL] if options.tools else None, options.thinking, generate=True)
        stream = self.engine.stream(prompt, options.max_new, options.temperature, options.seed + len(self.messages))
        response = show(stream, self.write, options.thinking)
        if response.stop == "length":
            self.write("(cut off: --max-new or the context is full; /new starts afresh)\n", True)
        if response.stop == "repeat":
            self.write("(stopped: it said the same again and again)\n", True)
        answer = {"role": "assistant", "content": response.parsed["content"], "tool_calls": calls_of(response)}
        thought = response.parsed["thinking"]
        self.messages.append(answer if thought is None else {**answer, "thinking": thought})
        return response

    def run_tool(self, call: dict) -> list:
        """The result of one call, shown and returned as message parts."""
        parts, _ = self.engine.call_tool(call, self.sandbox)
        self.write("".join(part if isinstance(part, str) else "[picture]" for part in parts) + "\n", True)
        return parts


def calls_of(response) -> list[dict]:
    """The tool calls of a turn; those of a malformed one are not run, so that nothing of them may wait for a result."""
    return response.parsed["tool_calls"] if response.parsed["well_formed"] else []


def obey(chat: Chat, line: str) -> Chat | None:
    """Carry out a /command: the chat to go on with, None to quit."""
    name, _, path = line.partition(" ")
    if name in ("/image", "/video"):
        if not path.strip():
            raise BadInput(f"{name} needs a file: {COMMANDS}")
        path = path.strip().strip("'\"")                                        # terminals quote what is dropped on them
        (chat.add_image if name == "/image" else chat.add_video)(str(Path(path).expanduser()))
        return chat
    if name == "/new":
        chat.sandbox.close()
        return Chat(chat.engine, chat.options, chat.write)
    if name == "/quit":
        return None
    raise BadInput(f"unknown command {name}; there are {COMMANDS}")


def interactive(chat: Chat) -> None:
    """Read, answer, repeat; a mistake costs a line, not the chat."""
    chat.write(f"{COMMANDS}\n", True)
    while chat is not None:
        try:
            line = input("> ").strip()
            if line.startswith("/"):
                chat = obey(chat, line)
            elif line:
                chat.ask(line)
        except (BadInput, OSError) as error:
            chat.write(f"{sentence(error)}\n")
        except KeyboardInterrupt:                                               # stops the answer
            chat.write("\n")
        except EOFError:
            return


@command
def main(arguments=None) -> None:
    """The command line: one question, or a chat."""
    options = parse_arguments(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")                                # a pipe on Windows does not know every character
    engine, about = open_engine(chosen_run(options.run), options.device, options.stage)
    write = writer(options.plain)
    if not options.plain:
        write(about + "\n", True)
    chat = Chat(engine, options, write)
    for path in options.image:
        chat.add_image(path)
    for path in options.video:
        chat.add_video(path)
    if options.prompt is not None and not options.prompt.strip():
        raise BadInput("the question is empty: write one, or leave it out to chat")
    chat.ask(options.prompt) if options.prompt else interactive(chat)


if __name__ == "__main__":
    main()
