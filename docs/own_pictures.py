"""Fifty captioned pictures to try `python train.py --data` with: ten pictograms that training never shows, each on five grounds.

    python docs/own_pictures.py DIR                        50 pictures and metadata.jsonl
    python docs/own_pictures.py DIR --number 20 --seed 1   20 others of every pictogram, to measure with
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi.world import content, draw

NEW = {"wine glass": "🍷", "ring": "💍", "rat": "🐀", "scooter": "🛵", "microscope": "🔬", "sandal": "👡", "harp": "🪉", "hedgehog": "🦔", "canoe": "🛶",
       "backpack": "🎒"}


def picture(symbol, rng):
    """A pictogram at a random size and place on a random ground: uint8 (H, W, 3)."""
    side = int(rng.integers(40, 81))
    size = int(rng.integers(20, min(40, side - 4)))
    ground = Image.fromarray(draw.finish(draw.background(rng, side, side)))
    sprite = Image.fromarray(content.rasterise(symbol)).resize((size, size), Image.Resampling.LANCZOS)
    ground.paste(sprite, tuple(int(v) for v in rng.integers(0, side - size, 2)), sprite)
    return ground


def main():
    parser = argparse.ArgumentParser(description="Captioned pictures of ten pictograms that training never shows.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=5, help="of every pictogram")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(args.seed), []
    for name, symbol in NEW.items():
        for i in range(args.number):
            file = f"{name.replace(' ', '_')}_{i}.png"
            picture(symbol, rng).save(args.folder / file)
            rows.append(json.dumps({"file_name": file, "text": name}))
    (args.folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
