"""Files -> pixels: pictures, animated gif / webp / png and folders of frames with Pillow; mp4 and friends where PyAV is installed.

PyAV is an extra (pip install av), as it brings a decoder of 100 MB.
"""
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from .errors import BadInput, first_words
from .vision import SAMPLE_FPS

FOLDER_FPS = 2.0                # of a folder of frames: K2.5's sampling rate (ours for a folder)
DEFAULT_FRAME_MS = 100          # of a gif that does not say: what browsers do
MAX_PIXELS = 2 ** 27            # of all frames together: 400 MB (ours)
FILMS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg")
HINT = "give a .gif, an animated .webp or .png, a folder of frames, or a film (.mp4, .webm, ...)"


class MediaError(BadInput):
    """A file that cannot be used; the message is one line for the user."""


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode -> uint8 (H, W, 3): turned upright (EXIF), transparency on white, 16 bits to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):                                              # 16-bit grey: Pillow would clip it, not scale it
        return np.repeat((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, -1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def load_image(path: str | Path) -> np.ndarray:
    """uint8 (H, W, 3) of a picture file (the first frame of an animation). Raises MediaError."""
    with _open(path) as image:
        return _decoded(path, lambda: to_rgb(image))


def load_video(path: str | Path) -> tuple[np.ndarray, float]:
    """(frames uint8 (T, H, W, 3), frames a second) of an animation, a film or a folder of equally large frames. Raises MediaError."""
    if Path(path).is_dir():
        return _load_folder(Path(path))
    return _load_film(Path(path)) if Path(path).suffix.lower() in FILMS else _load_animation(path)


def _load_film(path: Path) -> tuple[np.ndarray, float]:
    """Only the frames that K2.5's sampling takes are kept (two a second, evenly spread over the film), with the rate that they have."""
    try:
        import av
    except ImportError as error:
        raise MediaError(f"{path.suffix} films need PyAV: pip install av (or ffmpeg -i {path} -vf fps=2 frames/%04d.png)") from error
    _existing(path)
    try:
        total, fps, size = _film_facts(av, path)
        count = max(1, round(total * min(SAMPLE_FPS, fps) / fps))
        _check_size(path, count, size)
        wanted = set(np.linspace(0, total - 1, count).round().astype(int).tolist())
        with av.open(str(path)) as film:
            frames = [upright(frame) for i, frame in enumerate(film.decode(video=0)) if i in wanted]
    except MediaError:
        raise
    except Exception as error:                                                  # a broken film breaks PyAV in many ways
        raise MediaError(f"cannot decode {path}: {getattr(error, 'strerror', None) or first_words(error)}") from error
    return np.stack(frames), fps * (count - 1) / (total - 1) if count > 1 else fps


def upright(frame) -> np.ndarray:
    """A film's frame as uint8 (H, W, 3), turned as its display matrix says: telephones film lying on their side."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4))


def is_animated(path: Path) -> bool:
    """Whether Pillow finds more than one frame in a file. Raises MediaError if it is no picture."""
    with _open(path, HINT) as image:
        return _count(path, image) > 1


def _film_facts(av, path: Path) -> tuple[int, float, tuple[int, int]]:
    """(frames, frames a second, (width, height)); the frames are counted, as files may lie."""
    with av.open(str(path)) as film:
        if not film.streams.video:
            raise MediaError(f"{path} holds no pictures, only sound")
        stream = film.streams.video[0]
        fps, size = float(stream.average_rate or 0), (stream.width, stream.height)
        _check_size(path, 1, size)
        total = sum(1 for _ in film.decode(video=0))
    if total == 0 or fps <= 0:
        raise MediaError(f"{path} holds no pictures")
    return total, fps, size


def _load_animation(path) -> tuple[np.ndarray, float]:
    """Frames last differently long in a gif; their mean counts."""
    with _open(path, HINT) as image:
        count = _count(path, image)
        _check_size(path, count, image.size)
        frames, durations = [], []
        for frame in _decoded(path, lambda: list(_copies(image))):
            frames.append(to_rgb(frame))
            durations.append(frame.info.get("duration") or DEFAULT_FRAME_MS)
    return np.stack(frames), 1000.0 / float(np.mean(durations))


def _count(path, image) -> int:
    """How many frames Pillow finds."""
    return _decoded(path, lambda: getattr(image, "n_frames", 1))


def _copies(image):
    for frame in ImageSequence.Iterator(image):
        yield frame.copy()


def _load_folder(path: Path) -> tuple[np.ndarray, float]:
    """Files in natural order (2 before 10); what is no picture by its ending is not looked at."""
    endings = Image.registered_extensions()
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in endings and not f.name.startswith(".")), key=_natural)
    if not files:
        raise MediaError(f"no pictures in the folder {path}")
    frames = [load_image(files[0])]
    _check_size(path, len(files), frames[0].shape[1::-1])
    frames += [load_image(f) for f in files[1:]]
    if len({frame.shape for frame in frames}) > 1:
        raise MediaError(f"the frames in {path} differ in size")
    return np.stack(frames), FOLDER_FPS


def _natural(path: Path) -> list:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def _check_size(path, count: int, size: tuple[int, int]) -> None:
    if count * size[0] * size[1] > MAX_PIXELS:
        raise MediaError(f"{path} is too large: {count} frames of {size[0]} x {size[1]}, at most {MAX_PIXELS:,} pixels in all")


def _existing(path) -> None:
    if not os.path.isfile(path):                                                # False also for a name that no file can have
        raise MediaError(f"not a file: {path}" if os.path.exists(path) else f"no such file: {path}")


def _open(path, hint: str = "give a picture file") -> Image.Image:
    _existing(path)
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):      # our own limit is below
            image = Image.open(path)
        _check_size(path, 1, image.size)
        return image
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path} is too large: make it smaller, at most {MAX_PIXELS:,} pixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise MediaError(f"cannot read {path}: {hint}") from error


def _decoded(path, decode):
    """decode(), whose errors are the file's fault: truncated or broken data, which Pillow's readers meet in many ways."""
    try:
        return decode()
    except Exception as error:
        raise MediaError(f"cannot decode {path}: {first_words(error)}") from error
