"""python docs/examples.py: draws docs/examples, the first val problems of three rows of the exam: what README's first questions are about."""
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi.world import exam                                          # noqa: E402

FOLDER, TWICE_A_SECOND = Path(__file__).parent / "examples", 500         # ms a frame: none is left out when the clip is read


def main():
    FOLDER.mkdir(exist_ok=True)
    media = {row: exam.exam(row, "val", 1)[0].context[0] for row in ("caption", "name", "order")}
    Image.fromarray(media["caption"].pixels).save(FOLDER / "shapes.png")
    Image.fromarray(media["name"].pixels).save(FOLDER / "pictogram.png")
    first, *others = map(Image.fromarray, media["order"].frames)
    first.save(FOLDER / "shapes.gif", save_all=True, append_images=others, duration=TWICE_A_SECOND, loop=0)


if __name__ == "__main__":
    main()
