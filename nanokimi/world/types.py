"""What the world hands to the rest: pictures, clips, problems."""
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Image:
    """A picture. pixels: uint8 (H, W, 3)."""
    pixels: np.ndarray


@dataclass(frozen=True)
class Clip:
    """A video. frames: uint8 (T, H, W, 3), one every 1/fps seconds; or times: (T,) seconds of frames that were sampled already."""
    frames: np.ndarray
    fps: float = 2.0
    times: np.ndarray | None = None


@dataclass(frozen=True)
class Problem:
    """Something to ask, and how to check the answer.

    context: what the question is about (text, pictures, clips). reasoning: a correct chain of thought in plain words.
    verifier: a name in world/verify.py. meta: what a report wants to know (an unseen pair? which country?), never shown to the model.
    """
    ability: str                     # perception counting grounding ocr knowledge reasoning code video
    modality: str                    # text image video
    context: tuple                   # of str | Image | Clip; of what people bring (own.py), as prepared for the encoder
    question: str
    answer: str
    reasoning: str = ""
    verifier: str = "exact"
    code: str = ""                   # a Python program that finds the answer; the problem then needs the tool
    meta: dict = field(default_factory=dict)
