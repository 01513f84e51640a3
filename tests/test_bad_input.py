"""A hostile user: whatever is wrong with files, folders and options, the command lines say one sentence, end with exit code 2, and what was
saved before is as it was."""
import ast
import errno
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import untrained
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import rl
import sample
import train
from nanokimi import checkpoint, claims, data, errors, evaluate, gains, hf, learner, lengths, model, needles, own, plan, release
from nanokimi.config import PRESETS
from nanokimi.media import MediaError, load_image, load_video
from nanokimi.model import load, save
from nanokimi.tokenizer import Tokenizer

MAINS = {"sample": sample.main, "train": train.main, "rl": rl.main, "evaluate": evaluate.main, "gains": gains.main, "lengths": lengths.main,
         "hf": hf.main, "own": own.main, "claims": claims.main, "needles": needles.main, "release": release.main}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Trainings here are a few steps: no val documents, no process that makes data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "quick_documents", lambda *_: [])
        patch.setattr(data, "stream", lambda batches, workers: (batches[i] for i in range(len(batches))))
        yield


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A run with random weights in both stages and a real tokenizer. Never written to."""
    return untrained(tmp_path_factory.mktemp("bad") / "good", "pretrain", "sft")


@pytest.fixture
def run(good, tmp_path):
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "run")


@pytest.fixture
def says(monkeypatch, capsys):
    """says(command, *arguments): the one sentence with which it ends; the exit code must be 2."""
    def run_it(command, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            MAINS[command]()
        error = capsys.readouterr().err.strip()
        assert stop.value.code == 2, (stop.value.code, error)
        sentence = error.splitlines()[-1] if error.startswith("usage:") else error
        assert sentence and "\n" not in sentence and "Traceback" not in sentence and "[Errno" not in sentence, sentence
        return sentence
    return run_it


@pytest.mark.parametrize("rank, words", [("0", "the same command goes on"), ("1", "")])
def test_ctrl_c_is_one_sentence_of_the_first_process(monkeypatch, capsys, rank, words):
    def interrupted():
        raise KeyboardInterrupt
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as stop:
        errors.command(interrupted)()
    said = capsys.readouterr().err
    assert stop.value.code == 130 and words in said and bool(said) == bool(words) and "Traceback" not in said


ASK = ("what is it?", "--plain", "--max-new", "2", "--instant")
RL = ("--iterations", "1", "--pool", "4", "--problems", "2", "--k", "2", "--max-new", "4", "--threads", "1", "--save-every", "0")


def put(path, content):
    """Bytes, a text or JSON into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, (bytes, str)) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def files(folder):
    """{name: bytes} of everything in a folder but locks: what must not change."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "lock"}


# ---- pictures and clips ------------------------------------------------------------------------------------------------------------------

def encoded(kind="PNG", count=1, side=12):
    """A file's bytes: noise, `count` frames."""
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3)).astype(np.uint8)) for i in range(count)]
    out = io.BytesIO()
    frames[0].save(out, kind, **({"save_all": True, "append_images": frames[1:], "duration": 250} if count > 1 else {}))
    return out.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, *extra, pixels=b"\0" * 52):
    """A PNG that claims a size, whatever its pixels are."""
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *extra,
                     chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")])


def film(pictures):
    """Bytes of a film in Matroska: of pictures, or of sound alone."""
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        if pictures:
            stream = container.add_stream("mpeg4", rate=12)
            stream.width = stream.height = 32
            frames = [av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * i, np.uint8), format="rgb24") for i in range(pictures)]
        else:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frames = [av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")]
            frames[0].sample_rate = 8000
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


BOMB = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 10 ** 7))
PICTURES = {
    "empty": ("a.png", b"", "cannot read"), "cut in its head": ("a.png", encoded()[:40], "cannot"),
    "cut in its pixels": ("a.png", encoded()[:-200], "truncated"), "text": ("a.jpg", b"hello", "cannot read"),
    "a film's head": ("a.png", b"\0\0\0\x18ftypmp42", "cannot read"), "a drawing of another kind": ("a.svg", b"<svg/>", "cannot read"),
    "a program": ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "cannot"),
    "no pixels": ("a.png", png(0, 0), "cannot read"), "fewer pixels than it claims": ("a.png", png(999, 999), "cannot decode"),
    "20,000 x 20,000": ("a.png", png(20000, 20000), "too large"), "13,000 x 13,000": ("a.png", png(13000, 13000), "at most"),
    "2**31 wide": ("a.png", png(2 ** 31 - 1, 1), "too large"), "a bomb in its text": ("a.png", png(4, 4, BOMB), "cannot"),
}
CLIPS = {
    "text": ("a.gif", b"hello", "folder of frames"), "cut in its head": ("a.gif", encoded("GIF", 3)[:10], "cannot"),
    "more than the context": ("a.gif", encoded("GIF", 200, 96), "no room in a context"), "an empty film": ("a.mp4", b"", "cannot decode"),
    "a film of text": ("a.mp4", b"hello", "cannot decode"), "a film without its index": ("a.mp4", b"\0\0\0\x18ftypmp42", "cannot decode"),
    "a list of other files": ("a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot decode"),
    "a playlist": ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "cannot decode"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_used(says, good, tmp_path, name):
    file, content, words = PICTURES[name]
    assert words in says("sample", *ASK, "--run", good, "--image", put(tmp_path / file, content))


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_that_cannot_be_used(says, good, tmp_path, name):
    file, content, words = CLIPS[name]
    assert words in says("sample", *ASK, "--run", good, "--video", put(tmp_path / file, content))


def test_a_film_of_sound(says, good, tmp_path):
    assert "only sound" in says("sample", *ASK, "--run", good, "--video", put(tmp_path / "a.mkv", film(0)))


@pytest.mark.parametrize("path, words", [("none.png", "no such file"), ("", "no such file"), (".", "not a file"), ("/dev/zero", "not a file"),
                                         ("a\0b.png", "no such file"), ("x" * 5000, "no such file"), ("[red]x[/red].png", "[red]x[/red].png"),
                                         ("a\nb.png", "no such file")])
def test_a_picture_that_is_not_there(says, good, path, words):
    assert words in says("sample", *ASK, "--run", good, "--image", path)


def test_a_pipe_is_not_waited_for(says, good, tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "not a file" in says("sample", *ASK, "--run", good, "--image", tmp_path / "a.png")


@pytest.mark.parametrize("frames, words", [({}, "no pictures"), ({"1.png": b"x"}, "cannot read"), ({"1.png": encoded(), "2.png": encoded(side=9)}, "differ")])
def test_a_folder_of_frames_that_is_none(says, good, tmp_path, frames, words):
    (tmp_path / "frames").mkdir()
    for name, content in frames.items():
        put(tmp_path / "frames" / name, content)
    assert words in says("sample", *ASK, "--run", good, "--video", tmp_path / "frames")


@pytest.mark.parametrize("mode, size", [("RGB", (1, 1)), ("L", (1, 3000)), ("RGB", (20000, 1)), ("I;16", (9, 7)), ("F", (9, 7)), ("CMYK", (9, 7)),
                                        ("1", (9, 7)), ("LA", (9, 7))])
def test_odd_pictures_are_answered(good, tmp_path, mode, size):
    Image.new(mode, size).save(tmp_path / "a.tif")
    sample.main([*ASK, "--run", str(good), "--image", str(tmp_path / "a.tif")])


MEDIA = {"a.png": encoded(), "a.jpg": encoded("JPEG"), "a.gif": encoded("GIF", 3), "a.webp": encoded("WEBP", 3), "a.tif": encoded("TIFF"),
         "a.bmp": encoded("BMP")}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(MEDIA)), st.integers(0, 10 ** 6), st.lists(st.tuples(st.integers(0, 10 ** 6), st.integers(0, 255)), max_size=8))
def test_whatever_is_cut_or_changed_in_a_file_is_pixels_or_one_sentence(tmp_path_factory, name, end, changes):
    content = bytearray(MEDIA[name])
    for place, value in changes:
        content[place % len(content)] = value
    path = put(tmp_path_factory.mktemp("m") / name, bytes(content[:end % len(content) + 1]))
    for read in (load_image, lambda path: load_video(path).frames):
        try:
            assert read(path).dtype == np.uint8
        except MediaError as error:
            assert "\n" not in str(error)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10 ** 6), st.integers(0, 255)), min_size=1, max_size=30), st.integers(0, 10 ** 6))
def test_whatever_is_cut_or_changed_in_a_film(tmp_path_factory, changes, end):
    content = bytearray(FILM if FILM else pytest.skip("needs PyAV"))
    for place, value in changes:
        content[place % len(content)] = value
    try:
        clip = load_video(put(tmp_path_factory.mktemp("m") / "a.mkv", bytes(content[:len(content) // 2 + end % len(content)])))
        assert clip.frames.dtype == np.uint8 and clip.fps > 0
    except MediaError as error:
        assert "\n" not in str(error)


try:
    FILM = film(20)
except pytest.skip.Exception:
    FILM = None


# ---- prompts -----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prompt, words", [("word " * 3000, "no room in a context"), ("x" * 10 ** 5, "no room in a context"), ("", "is empty"),
                                           (" \n", "is empty")])
def test_a_prompt_that_cannot_be_asked(says, good, prompt, words):
    assert words in says("sample", prompt, "--plain", "--run", good)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["<|im_end|>", "<|media_pad|>", "[EOS]", "<think>", "</think>", "\ud800", "\0"])), max_size=8))
def test_a_prompt_never_becomes_a_special_token(good, pieces):
    tokenizer = Tokenizer.load(good / "tokenizer")
    ids = tokenizer.encode("".join(pieces))
    assert all(i < len(tokenizer.ranks) for i in ids)
    assert tokenizer.decode(ids) == "".join(pieces).encode(errors="replace").decode() or "\ud800" in pieces


# ---- options -----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("command, arguments, words", [
    ("sample", ("--temperature", "nan"), "want 0 or more"), ("sample", ("--temperature", "inf"), "want 0"),
    ("sample", ("--temperature", "1e-45"), "want 0, or 0.01 and more"), ("train", ("--seed", "9" * 30), "want 0 to"), ("rl", ("--seed", "9" * 30), "want 0 to"),
    ("train", ("--threads", "100000"), "want 1 to"), ("sample", ("--max-new", "0"), "want 1"),
    ("sample", ("--seed", "-1"), "want 0"), ("sample", ("--device", "meta"), "no device meta"), ("sample", ("--device", "nonsense"), "no device"),
    ("sample", ("--stage", "none"), "finished here: "), ("sample", ("--stage", "../../etc"), "no finished stage"),
    ("train", ("--steps", "0"), "want 1"), ("train", ("--documents", "2"), "want 4"), ("train", ("--minutes", "nan"), "want 0.01"), ("train", ("--threads", "0"), "want 1"),
    ("train", ("--data", ".", "--minutes", "5"), "--minutes does not go with --data"), ("train", ("--data", ".", "--wandb"), "--wandb does not"),
    ("train", ("--devices", "3", "--precision", "32-true"), "use 1 or 2 processes"), ("train", ("--seed", "x"), "invalid int"),
    ("train", ("--stage", "sft", "--devices", "1", "--precision", "32-true"), "has none yet"),
    ("rl", ("--k", "1"), "give 2 or more"), ("rl", ("--visual", "2"), "want 0 to 1"), ("rl", ("--lr", "nan"), "want 0"), ("rl", ("--start", "none"), "finished here: pretrain"),
    ("rl", ("--temperature", "0"), "want 0.01"), ("evaluate", ("--problems", "-3"), "want 2"), ("evaluate", ("--stage", "none"), "no finished stage"),
    ("gains", (), "no finished stage rl"), ("lengths", (), "no finished stage long: python rl.py long2short"),
])
def test_options_that_cannot_be(says, good, tmp_path, command, arguments, words):
    where = {"sample": ("hello", "--run", good), "train": ("--run", tmp_path / "new"), "rl": ("--run", good)}.get(command, (good,))
    before = files(good)
    assert words in says(command, *where, *arguments)
    assert files(good) == before


@pytest.mark.parametrize("command, arguments, words", [
    ("claims", ("--jobs", "0"), "want 1"), ("claims", ("--problems", "0"), "want 2"), ("release", ("--threads", "0", "x"), "want 1 to"),
    ("claims", ("--preset", "micro", "--out", "results/claims.json"), "not published"), ("needles", ("--problems", "0", "x"), "want 1")])
def test_options_of_what_measures(says, monkeypatch, command, arguments, words):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert words in says(command, *arguments)


@pytest.mark.parametrize("command, arguments", [("sample", ("hi", "--run")), ("rl", ("--run",)), ("evaluate", ()), ("gains", ()), ("lengths", ()),
                                                ("hf", ("export",)), ("train", ("--data", ".", "--run"))])
def test_a_run_that_is_not_there(says, tmp_path, command, arguments):
    last = (tmp_path / "out",) if command == "hf" else ()
    assert str(tmp_path / "none") in says(command, *arguments, tmp_path / "none", *last)


def test_a_run_that_is_a_file(says, tmp_path):
    assert "File exists" in says("train", "--run", put(tmp_path / "file", ""), "--devices", "1", "--precision", "32-true")


# ---- damaged, foreign and hostile models -------------------------------------------------------------------------------------------------

class Evil:
    """What a pickle may do."""
    def __reduce__(self):
        return os.mkdir, (os.environ["NANOKIMI_EVIL"],)


def header(content, body=b"", length=None):
    """A safetensors file with this header, whose length may lie."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensors(change):
    """A damage that rewrites the tensors of sft."""
    def damage(run):
        content = {name: x.clone() for name, x in load_file(run / "sft" / "model.safetensors").items()}
        save_file(change(content), run / "sft" / "model.safetensors")
    return damage


def weights(content):
    return lambda run: put(run / "sft" / "model.safetensors", content() if callable(content) else content)


def config(change):
    """A damage that rewrites config.json of sft."""
    def damage(run):
        path = run / "sft" / "config.json"
        put(path, change(json.loads(path.read_text("utf-8"))))
    return damage


def saved_by_torch():
    out = io.BytesIO()
    torch.save({"language.embed.weight": torch.zeros(2)}, out)
    return out.getvalue()


HEAD, FIRST = "language.head.weight", "language.embed.weight"
LYING = {FIRST: {"dtype": "F32", "shape": [4], "data_offsets": [0, 10 ** 9]}}
DAMAGES = {
    "empty weights": weights(b""), "cut weights": lambda run: put(p := run / "sft" / "model.safetensors", p.read_bytes()[:5000]),
    "a pickle": weights(lambda: pickle.dumps(Evil())), "torch.save": weights(saved_by_torch),
    "a header of 2**62 bytes": weights(header(b"{}", length=2 ** 62)), "a header of 90 MB": weights(header(b"{}", length=90_000_000)),
    "a header of no JSON": weights(header(b"abcd")), "offsets beyond the end": weights(header(LYING, b"\0" * 16)),
    "a shape beyond its bytes": weights(header({FIRST: {"dtype": "F32", "shape": [2 ** 40], "data_offsets": [0, 16]}}, b"\0" * 16)),
    "another shape": tensors(lambda t: t | {HEAD: t[HEAD][:1].clone()}), "foreign names": tensors(lambda t: {"x": torch.zeros(3)}),
    "one tensor more": tensors(lambda t: t | {"x": torch.zeros(3)}), "one tensor less": tensors(lambda t: {n: x for n, x in t.items() if n != HEAD}),
    "NaN": tensors(lambda t: t | {HEAD: t[HEAD] * float("nan")}), "infinity": tensors(lambda t: t | {HEAD: t[HEAD] / 0.0}),
    "whole numbers": tensors(lambda t: t | {HEAD: t[HEAD].long()}),
    "numbers that overflow": tensors(lambda t: t | {name: t[name] * 1e30 for name in (HEAD, "language.norm.weight")}),
    "no config": lambda run: (run / "sft" / "config.json").unlink(), "half a config": config(lambda c: '{"vision":'),
    "a list": config(lambda c: [1]), "an empty config": config(lambda c: {}), "bytes": config(lambda c: b"\xff\xfe\0"),
    "deep nesting": config(lambda c: "[" * 10 ** 5), "an unknown size": config(lambda c: c | {"vision": {"x": 1}}),
    "words for numbers": config(lambda c: c | {"language": c["language"] | {"experts": "4"}}),
    "terabytes": config(lambda c: c | {"language": c["language"] | {"experts": 4 * 10 ** 9}}),
    "10**9 layers": config(lambda c: c | {"language": c["language"] | {"layers": 10 ** 9}}),
    "a pipe for a config": lambda run: (p := run / "sft" / "config.json", p.unlink(), os.mkfifo(p)),
    "no heads": config(lambda c: c | {"vision": c["vision"] | {"heads": 0}}), "another pad token": config(lambda c: c | {"media_pad": 5}),
    "a pad token beyond the vocabulary": config(lambda c: c | {"media_pad": 10 ** 6}),
    "an empty tokenizer": lambda run: put(run / "tokenizer" / "tokenizer.tiktoken", ""),
    "a tokenizer of prose": lambda run: put(run / "tokenizer" / "tokenizer.tiktoken", "once upon a time\n"),
    "a tokenizer of bytes": lambda run: put(run / "tokenizer" / "tokenizer.tiktoken", b"\xff\xfe\0\1"),
    "a cut tokenizer": lambda run: put(p := run / "tokenizer" / "tokenizer.tiktoken", p.read_bytes()[:4000]),
    "fewer tokens": lambda run: put(p := run / "tokenizer" / "tokenizer.tiktoken", b"".join(p.read_bytes().splitlines(True)[:400])),
    "the same rank twice": lambda run: put(p := run / "tokenizer" / "tokenizer.tiktoken", p.read_bytes().replace(b" 301\n", b" 300\n")),
    "no tokenizer": lambda run: shutil.rmtree(run / "tokenizer"),
}
NO_FILE = ("numbers that overflow", "another pad token", "fewer tokens")     # no single file is to blame
SAME = {"sample": lambda run, out: (*ASK, "--stage", "sft", "--run", run), "rl": lambda run, out: ("--run", run, *RL),
        "evaluate": lambda run, out: (run, "--problems", "2", "--threads", "1"),
        "hf": lambda run, out: ("export", run, out / "out", "--stage", "sft"),
        "train": lambda run, out: ("--data", put(out / "words" / "a.txt", "hello").parent, "--run", run, "--steps", "1", "--threads", "1")}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_hostile_model(says, run, name, monkeypatch, tmp_path):
    monkeypatch.setenv("NANOKIMI_EVIL", str(tmp_path / "evil"))
    DAMAGES[name](run)
    before = files(run)
    assert str(run) in says("sample", *SAME["sample"](run, tmp_path)) or name in NO_FILE
    assert files(run) == before and not (tmp_path / "evil").exists(), "loading it ran code"


@pytest.mark.parametrize("command", [c for c in SAME if c != "sample"])
@pytest.mark.parametrize("name", ["cut weights", "another shape", "NaN", "half a config", "a cut tokenizer", "fewer tokens"])
def test_every_command_says_so(says, run, name, command, tmp_path):
    DAMAGES[name](run)
    if command == "train":
        shutil.rmtree(run / "pretrain")
    before = files(run)
    assert str(run) in says(command, *SAME[command](run, tmp_path)) or name in NO_FILE
    kept = files(run)
    assert {path: kept[path] for path in before} == before


# ---- checkpoints -------------------------------------------------------------------------------------------------------------------------

TRAIN = ("--preset", "micro", "--stage", "pretrain", "--steps", "3", "--devices", "1", "--threads", "1", "--precision", "32-true", "--save-every", "0")


def full(*_, **__):
    """A full disk in the words of safetensors (seen on a full tmpfs)."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_space(*_, **__):
    """A full disk in the words of Python (seen on the same)."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, good, quick):
    """A training whose disk was full when the finished weights were to be written: its checkpoint is there. Never written to."""
    run = tmp_path_factory.mktemp("bad") / "stopped"
    shutil.copytree(good / "tokenizer", run / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "--run", str(run), *TRAIN])
        patch.setattr(train, "save", full)
        with pytest.raises(SystemExit) as stop:
            train.main()
    assert stop.value.code == 2 and (run / "pretrain" / "step-000003").is_dir() and not (run / "pretrain" / "model.safetensors").exists()
    return run


def state(change):
    """A damage that rewrites the tensors of the checkpoint."""
    def damage(folder):
        content = load_file(folder / "state.safetensors")
        save_file({name: x.clone().contiguous() for name, x in change(content).items()}, folder / "state.safetensors")
    return damage


MOMENTUM = "optimizer/0/0/momentum_buffer"
CHECKPOINTS = {
    "cut": lambda f: put(f / "state.safetensors", (f / "state.safetensors").read_bytes()[:1000]), "a pickle": lambda f: put(f / "state.safetensors", pickle.dumps([1])),
    "gone": lambda f: (f / "state.safetensors").unlink(), "a foreign model": state(lambda t: {"model/x": torch.zeros(2)}),
    "no random state": state(lambda t: {n: x for n, x in t.items() if n != "rng"}), "a short random state": state(lambda t: t | {"rng": t["rng"][:5]}),
    "a random state of numbers": state(lambda t: t | {"rng": torch.zeros(3)}),
    "momentum of another shape": state(lambda t: t | {MOMENTUM: torch.zeros(3)}), "momentum of no parameter": state(lambda t: t | {"optimizer/9/9/x": torch.zeros(3)}),
    "a name that is none": state(lambda t: t | {"optimizer/x": torch.zeros(3)}), "half its JSON": lambda f: put(f / "state.json", '{"step": 3'),
    "no step": lambda f: put(f / "state.json", {"seconds": 1.0}), "a step that is none": lambda f: put(f / "state.json", {"step": "3"}),
    "a step before the first": lambda f: put(f / "state.json", {"step": -1}), "a list": lambda f: put(f / "state.json", [3]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_continued(says, stopped, tmp_path, name):
    run = shutil.copytree(stopped, tmp_path / "run")
    CHECKPOINTS[name](run / "pretrain" / "step-000003")
    before = files(run)
    sentence = says("train", "--run", run, *TRAIN)
    assert "step-000003" in sentence and ("delete that folder" in sentence or "put it back" in sentence)
    assert files(run) == before


@pytest.mark.parametrize("content, words", [('{"preset": "micro"', "cannot be used"), ("[]", "has no"), ("{}", "has no preset"),
                                            ({"preset": "micro", "seed": 0}, "has no minutes")])
def test_a_damaged_run_json(says, stopped, tmp_path, content, words):
    run = shutil.copytree(stopped, tmp_path / "run")
    put(run / "run.json", content)
    before = files(run)
    assert words in says("train", "--run", run, *TRAIN) and files(run) == before


@pytest.mark.parametrize("name, value", [("devices", "two"), ("devices", 0), ("threads", "x"), ("precision", "fp8"), ("compile", "x"), ("steps", "3"),
                                         ("seed", 10.5), ("minutes", None), ("documents", -2), ("preset", "huge")])
def test_a_run_json_with_other_kinds_of_values(says, stopped, tmp_path, name, value):
    run = shutil.copytree(stopped, tmp_path / "run")
    put(run / "run.json", json.loads((run / "run.json").read_text("utf-8")) | {name: value})
    before = files(run)
    assert name in says("train", "--run", run, *TRAIN) and files(run) == before


def test_lines_of_metrics_that_are_no_objects(stopped, tmp_path):
    """They are left out; training goes on."""
    run = shutil.copytree(stopped, tmp_path / "run")
    rows = checkpoint.read_rows(run / "metrics.jsonl")
    with open(run / "metrics.jsonl", "a") as file:
        file.write("[1, 2]\n7\nnull\n")
    assert checkpoint.read_rows(run / "metrics.jsonl") == rows


def test_without_a_compiler(says, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "--compile needs a C++ compiler" in says("train", "--preset", "micro", "--stage", "pretrain", "--run", tmp_path, "--compile", "--devices", "1",
                                                    "--precision", "32-true")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")])
def test_not_enough_memory(says, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error
    monkeypatch.setattr(train, "train", fail)
    assert "not enough memory" in says("train", "--preset", "micro", "--run", tmp_path)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_is_not_the_files_fault(error):
    """Nobody is told to delete a checkpoint because of it."""
    with pytest.raises(type(error)), errors.reading("step-000007"):
        raise error


def test_a_missing_stage_names_a_command_that_works(tmp_path):
    (tmp_path / "run.json").write_text('{"preset": "micro"}')
    with pytest.raises(errors.BadInput, match=r"python train.py --preset micro --run \S+ makes it"):
        checkpoint.need(tmp_path, "sft")
    with pytest.raises(errors.BadInput, match=r"python rl.py --run \S+ makes it"):
        checkpoint.need(tmp_path, "rl")
    with pytest.raises(errors.BadInput, match=r"cp -r \S+checkpoints runs/released, then python rl.py long2short --run runs/released makes it"):
        checkpoint.need(checkpoint.RELEASED, "long")


@pytest.mark.parametrize("command, arguments", [("train", []), ("rl", []), ("rl", ["long2short"])])
def test_nothing_trains_in_what_was_released(says, command, arguments):
    before = sorted(path.name for path in checkpoint.RELEASED.iterdir())
    assert "cp -r" in says(command, *arguments, "--run", checkpoint.RELEASED)
    assert sorted(path.name for path in checkpoint.RELEASED.iterdir()) == before


def test_a_stage_without_its_problems_does_not_go_on(says, run):
    """As in a copy of what was released; said before anything is written."""
    shutil.copytree(run / "sft", run / "rl")
    assert "came without the problems" in says("rl", "--run", run)
    assert not (run / "rl" / "rl.json").exists()


def test_other_errors_keep_their_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "train", lambda *_: torch.zeros(2) @ torch.zeros(3))
    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "micro", "--run", str(tmp_path)])
    with pytest.raises(RuntimeError, match="size"):
        train.main()


def test_other_settings_do_not_continue(says, stopped):
    before = files(stopped)
    assert "was started with steps 3, not 4" in says("train", "--run", stopped, *TRAIN, "--steps", "4") and files(stopped) == before
    assert "was started with seed 0, not 1: leave --seed away" in says("train", "--run", stopped, *TRAIN, "--seed", "1") and files(stopped) == before


def test_a_loss_that_is_no_number(says, stopped, tmp_path):
    """Poisoned weights: the step is not taken, and what was saved stays as it is."""
    run = shutil.copytree(stopped, tmp_path / "run")
    folder = (run / "pretrain" / "step-000003").rename(run / "pretrain" / "step-000001")
    put(folder / "state.json", {"step": 1, "seconds": 1.0, "totals": {}})
    state(lambda t: t | {f"model/{HEAD}": t[f"model/{HEAD}"] * float("nan")})(folder)
    before = files(run / "pretrain")
    assert "not finite. The last checkpoint is intact" in says("train", "--run", run, *TRAIN) and files(run / "pretrain") == before


def test_a_gradient_that_is_no_number_is_not_learned_from(good):
    """What rl.py, long2short and train.py --data do: the weights stay what they were."""
    student = load(good / "sft").train()
    teacher = learner.Learner(student, Tokenizer.load(good / "tokenizer"), learner.muon(student, 1e-3))
    before = {name: x.clone() for name, x in student.state_dict().items()}
    for p in student.parameters():
        p.grad = torch.full_like(p, float("nan"))
    with pytest.raises(errors.BadInput, match="not finite"):
        teacher.step()
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())


def test_metrics_that_a_full_disk_cut_off(stopped, tmp_path):
    """Half a line, also one that ends like a whole one, is left out; the others stay."""
    path = put(tmp_path / "metrics.jsonl", (stopped / "metrics.jsonl").read_bytes() + b'{"stage": "pretrain", "val": {"name": 0.1}')
    assert [row["step"] for row in checkpoint.read_rows(path)] == [1, 2, 3]


# ---- a disk that is full, folders that may not be written ---------------------------------------------------------------------------------

def denied(path, *_, **__):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("where", ["tensors", "json", "rename", "metrics"])
@pytest.mark.parametrize("how, words", [("full", "the disk is full"), ("denied", "Permission denied")])
def test_nothing_saved_is_lost_when_saving_fails(says, stopped, tmp_path, monkeypatch, where, how, words):
    """A step before the end: the next checkpoint cannot be written, the one before it stays, and the same command then goes on."""
    run = shutil.copytree(stopped, tmp_path / "run")
    folder = (run / "pretrain" / "step-000003").rename(run / "pretrain" / "step-000002")
    put(folder / "state.json", json.loads((folder / "state.json").read_text("utf-8")) | {"step": 2})
    before, fails = files(folder), no_space if how == "full" else denied
    with monkeypatch.context() as patch:
        if where == "tensors":
            patch.setattr(checkpoint, "save_file", full if how == "full" else lambda tensors, path: denied(path))
        elif where == "json":
            patch.setattr(Path, "write_text", fails)
        elif where == "rename":
            patch.setattr(os, "replace", fails)
        else:
            patch.setattr(plan.Log, "row", lambda log, row: fails(log.path))
        assert words in says("train", "--run", run, *TRAIN)
    assert files(folder) == before
    if where == "tensors":
        monkeypatch.setattr(sys, "argv", ["train.py", "--run", str(run), *TRAIN])
        train.main()
        assert (run / "pretrain" / "model.safetensors").exists() and not folder.exists()


@pytest.mark.parametrize("where", [(Path, "write_text", no_space), (model, "save_file", full), (os, "replace", no_space)])
def test_a_full_disk_keeps_the_model_that_was_there(good, run, monkeypatch, where):
    """model.save over an older model."""
    before, other = files(run / "sft"), load(good / "pretrain")
    monkeypatch.setattr(*where)
    with pytest.raises(Exception) as caught:
        save(other, run / "sft")
    assert "disk is full" in errors.sentence(caught.value) and before.items() <= files(run / "sft").items()


def test_an_export_that_fails_keeps_the_older_one(says, good, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["hf", "export", str(good), str(out)])
    hf.main()
    capsys.readouterr()
    before = (out / "model.safetensors").read_bytes()
    monkeypatch.setattr(hf, "save_file", full)
    assert "disk is full" in says("hf", "export", good, out, "--dtype", "bf16") and (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("command", ["train", "rl", "hf", "own"])
def test_a_folder_that_may_not_be_written(says, good, run, tmp_path, monkeypatch, command):
    monkeypatch.setattr(Path, "mkdir", denied)
    words = put_words(tmp_path) if command == "own" else None
    arguments = {"train": ("--run", tmp_path / "new", *TRAIN), "rl": ("--run", run, *RL), "hf": ("export", run, tmp_path / "out"),
                 "own": ("--data", words, "--run", run, "--steps", "1", "--threads", "1")}[command]
    assert "Permission denied" in says("train" if command == "own" else command, *arguments)


def put_words(folder):
    """A folder of text."""
    os.makedirs(folder / "words")
    (folder / "words" / "a.txt").write_text("hello")
    return folder / "words"


@pytest.mark.parametrize("command, arguments, folder", [("train", TRAIN, "."), ("rl", RL, "rl"), ("train", ("--steps", "1", "--threads", "1"), "tuned")])
def test_two_trainings_do_not_share_a_folder(says, run, monkeypatch, tmp_path, command, arguments, folder):
    class Impatient(plan.FileLock):
        def acquire(self, timeout=None):
            return super().acquire(timeout=0.1)
    monkeypatch.setattr(plan, "FileLock", Impatient)
    more = ("--data", put_words(tmp_path)) if folder == "tuned" else ()
    with plan.hold(run / folder):
        before = files(run)
        assert "another training is at work" in says(command, "--run", run, *arguments, *more) and files(run) == before


# ---- other people's folders ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def exported(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "exported"
    hf.export(good, folder)
    return folder


def json_of(name, change):
    return lambda folder: put(folder / name, change(json.loads((folder / name).read_text("utf-8"))))


FOLDERS = {
    "no config": lambda f: (f / "config.json").unlink(), "half a config": lambda f: put(f / "config.json", "{"), "a list": lambda f: put(f / "config.json", "[]"),
    "another model": json_of("config.json", lambda c: c | {"model_type": "llama"}), "no sizes": json_of("config.json", lambda c: c | {"text_config": {}}),
    "words for sizes": json_of("config.json", lambda c: c | {"text_config": c["text_config"] | {"hidden_size": "big"}}),
    "no processors": json_of("processor_config.json", lambda c: {}), "processors of nothing": json_of("processor_config.json", lambda c: {n: 1 for n in c}),
    "cut weights": lambda f: put(f / "model.safetensors", (f / "model.safetensors").read_bytes()[:5000]), "no weights": lambda f: (f / "model.safetensors").unlink(),
    "a pickle": lambda f: put(f / "model.safetensors", pickle.dumps([1])), "a tokenizer without words": json_of("tokenizer.json", lambda c: c | {"model": {}}),
    "a tokenizer of lists": json_of("tokenizer.json", lambda c: c | {"added_tokens": [1]}), "half a tokenizer": lambda f: put(f / "tokenizer.json", "{"),
    "NaN": lambda f: save_file({n: x * float("nan") if "lm_head" in n else x for n, x in load_file(f / "model.safetensors").items()}, f / "model.safetensors"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_does_not_come_back(says, exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "folder")
    FOLDERS[name](folder)
    assert str(folder) in says("hf", "import", folder, tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing may be written for a bad folder"


@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", '{"text": ' + "[" * 10 ** 5, "a.jsonl, line 1: no JSON"), ("a.jsonl", "9" * 10 ** 4, "a.jsonl, line 1"), ("a.jsonl", b"\xff", "not UTF-8"),
    ("metadata.jsonl", {"file_name": "a\0b.png", "text": "x"}, "give the name of a file"),
    ("metadata.jsonl", {"file_name": "\ud800.png", "text": "x"}, "give the name of a file"), ("metadata.jsonl", {"file_name": "/etc/passwd", "text": "x"}, "outside"),
    ("metadata.jsonl", {"file_name": "big.png", "text": "x"}, "metadata.jsonl, line 1: "), ("metadata.jsonl", {"file_name": ["a"], "text": "x"}, "must be a string"),
])
def test_data_that_cannot_be_learned(says, run, tmp_path, name, content, words):
    put(tmp_path / "data" / name, content), put(tmp_path / "data" / "big.png", png(20000, 20000))
    assert words in says("train", "--data", tmp_path / "data", "--run", run) and not (run / "tuned").exists()


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["text", "messages", "role", "content", "file_name", "question", "answer", "user", "assistant"]), inner, max_size=4), max_leaves=8))
def test_any_json_is_an_example_or_one_sentence(good, tmp_path_factory, row):
    folder = tmp_path_factory.mktemp("d")
    for name in ("a.jsonl", "metadata.jsonl"):
        put(folder / name, row)
        try:
            assert own.read(folder, Tokenizer.load(good / "tokenizer"), PRESETS["micro"].model.vision)
        except errors.BadInput as error:
            assert "\n" not in errors.sentence(error)
        (folder / name).unlink()


def test_text_is_written_in_an_encoding_that_is_named():
    """Left to the system, Windows takes one that does not know every character a model may say. JSON is ASCII as Python writes it."""
    root = Path(__file__).parent.parent
    for path in [*root.glob("*.py"), *root.glob("nanokimi/**/*.py"), *root.glob("notebooks/exercises/*.py"), *root.glob("docs/*.py")]:
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "write_text":
                named = len(call.args) == 2 or any(word.arg == "encoding" for word in call.keywords)
                assert named or "json.dumps" in ast.unparse(call), f"{path.name}, line {call.lineno}: {ast.unparse(call)[:80]}"
