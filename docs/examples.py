"""python docs/examples.py: draws docs/examples, of three rows of the exam the first val problem that the released model gets right (of
pictures one with several things): what README's first questions are about."""
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi.checkpoint import RELEASED                                 # noqa: E402
from nanokimi.engine import engine_of                                    # noqa: E402
from nanokimi.evaluate import chat_answers                               # noqa: E402
from nanokimi.model import load                                          # noqa: E402
from nanokimi.world import exam, verify                                  # noqa: E402

FOLDER, TWICE_A_SECOND = Path(__file__).parent / "examples", 500         # ms a frame: none is left out when the clip is read


def first_right(engine, row, things=1):
    """The picture or clip of the row's first problem that is answered rightly and whose answer names so many things."""
    problems = [p for p in exam.exam(row, "val", 40) if p.answer.count(",") + 1 >= things]
    said = chat_answers(engine, problems)
    return next(p.context[0] for p, answer in zip(problems, said) if verify.correct(p, answer))


def main():
    FOLDER.mkdir(exist_ok=True)
    engine = engine_of(RELEASED, load(RELEASED / "rl"))
    Image.fromarray(first_right(engine, "caption", things=2).pixels).save(FOLDER / "shapes.png")
    Image.fromarray(first_right(engine, "name").pixels).save(FOLDER / "pictogram.png")
    first, *others = map(Image.fromarray, first_right(engine, "order").frames)
    first.save(FOLDER / "shapes.gif", save_all=True, append_images=others, duration=TWICE_A_SECOND, loop=0)


if __name__ == "__main__":
    main()
