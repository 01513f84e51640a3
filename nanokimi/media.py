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
from .vision import SAMPLE_FPS, sample_frames
from .world.types import Clip

FOLDER_FPS = 2.0                # of a folder of frames: K2.5's sampling rate (ours for a folder)
DEFAULT_FRAME_MS = 100          # of a gif that does not say, or says 10 ms or less: what browsers do
MAX_PIXELS = 2 ** 27            # of all frames together: 400 MB (ours)
FILMS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".3gp", ".ts", ".wmv", ".flv", ".ogv")
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")                                     # several frames in other formats are pages or thumbnails
HINT = "give a .gif, an animated .webp or .png, a folder of frames, or a film (.mp4, .webm, ...)"


class MediaError(BadInput):
    """A file that cannot be used; the message is one line for the user."""


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode -> uint8 (H, W, 3): turned upright (EXIF), transparency on white, 16 bits to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":                                                   # Pillow would clip it, not scale it
        return np.repeat(eight_bits(np.asarray(image), image.mode)[..., None], 3, -1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def eight_bits(grey: np.ndarray, mode: str) -> np.ndarray:
    """Grey of 16 or 32 bits or floats, (H, W), as uint8. Modes I and F do not say what is white: the next of 1 (F), 255 and 65535 is."""
    grey = np.nan_to_num(grey.astype(np.float64)).clip(0)
    whites = [65535] if mode.startswith("I;16") else [1, 255, 65535] if mode == "F" else [255, 65535]
    white = next((white for white in whites if grey.max() <= white), grey.max())
    return (grey * (255 / white)).astype(np.uint8)


def load_image(path: str | Path) -> np.ndarray:
    """uint8 (H, W, 3) of a picture file (the first frame of an animation). Raises MediaError."""
    with _open(path) as image:
        return _decoded(path, lambda: to_rgb(image))


def load_video(path: str | Path) -> Clip:
    """The clip in an animation, a film or a folder of equally large frames. Raises MediaError."""
    if Path(path).is_dir():
        return _load_folder(Path(path))
    return _load_film(Path(path)) if Path(path).suffix.lower() in FILMS else _load_animation(path)


def _load_film(path: Path) -> Clip:
    """Only the frames that K2.5's sampling takes are kept, with their times."""
    _existing(path)
    try:
        import av
    except ImportError as error:
        raise MediaError(f"{path.suffix} films need PyAV: pip install av (or ffmpeg -i {path} -vf fps=2 frames/%04d.png)") from error
    try:
        times, fps, size = _film_facts(av, path)
        sampled = sample_frames(len(times), fps)
        _check_size(path, len(sampled), size)
        wanted = set(sampled.tolist())
        with av.open(str(path)) as film:
            frames = [upright(frame) for i, frame in enumerate(film.decode(video=0)) if i in wanted]
    except MediaError:
        raise
    except Exception as error:                                                  # a broken film breaks PyAV in many ways
        raise MediaError(f"cannot decode {path}: {getattr(error, 'strerror', None) or first_words(error)}") from error
    return Clip(_stacked(path, frames), fps, times[sampled])


def upright(frame) -> np.ndarray:
    """A film's frame as uint8 (H, W, 3), turned as its display matrix says: telephones film lying on their side."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4))


def is_animated(path: Path) -> bool:
    """Whether a file is an animation, not a picture, a scan of several pages or a photo with its thumbnail. Raises MediaError if it is no
    picture."""
    with _open(path, HINT) as image:
        return image.format in ANIMATIONS and _count(path, image) > 1


def _film_facts(av, path: Path) -> tuple[np.ndarray, float, tuple[int, int]]:
    """((frames,) seconds since the first, frames a second, (width, height)); frames are counted and timed, as files may lie."""
    with av.open(str(path)) as film:
        if not film.streams.video:
            raise MediaError(f"{path} holds no pictures: only sound, or its end is missing")
        stream = film.streams.video[0]
        rate, size = float(stream.average_rate or 0), (stream.width, stream.height)
        _check_size(path, 1, size)
        times = [frame.time for frame in film.decode(video=0)]
        alone = film.duration / av.time_base if film.duration and not film.streams.audio else 0
        lasts = float(stream.duration * stream.time_base) if stream.duration else alone
    if not times or None in times and rate <= 0:
        raise MediaError(f"{path} holds no pictures")
    times = np.arange(len(times)) / rate if None in times else np.array(times) - times[0]
    fps = (len(times) - 1) / times[-1] if times[-1] > 0 else rate or SAMPLE_FPS
    if times[-1] + 1 / fps < 0.95 * lasts:
        raise MediaError(f"{path} ends after {times[-1]:.1f} of {lasts:.1f} seconds: it was cut off, get it again")
    return times, fps, size


def _load_animation(path) -> Clip:
    """Frames last differently long in a gif; their mean counts."""
    with _open(path, HINT) as image:
        count = _count(path, image)
        _check_size(path, count, image.size)
        frames, durations = [], []
        for frame in _decoded(path, lambda: [frame.copy() for frame in ImageSequence.Iterator(image)]):
            frames.append(to_rgb(frame))
            duration = frame.info.get("duration") or 0
            durations.append(duration if duration > 10 else DEFAULT_FRAME_MS)
    return Clip(_stacked(path, frames), 1000.0 / float(np.mean(durations)))


def _stacked(path, frames) -> np.ndarray:
    """(T, H, W, 3) of frames that must be equally large."""
    if len({frame.shape for frame in frames}) > 1:
        raise MediaError(f"the frames in {path} differ in size")
    return np.stack(frames)


def _count(path, image) -> int:
    """How many frames Pillow finds."""
    return _decoded(path, lambda: getattr(image, "n_frames", 1))


def _load_folder(path: Path) -> Clip:
    """Files in natural order (2 before 10); what is no picture by its ending is not looked at."""
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and ending not in FILMS]
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in endings and not f.name.startswith(".")), key=_natural)
    if not files:
        raise MediaError(f"no pictures in the folder {path}")
    frames = [load_image(files[0])]
    _check_size(path, len(files), frames[0].shape[1::-1])
    frames += [load_image(f) for f in files[1:]]
    return Clip(_stacked(path, frames), FOLDER_FPS)


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
    except PermissionError as error:
        raise MediaError(f"{path} may not be read: change its permissions") from error
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
