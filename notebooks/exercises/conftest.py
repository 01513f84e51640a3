"""The blanks fail by design: they are run only by somebody who asks for this folder, not by `python -m pytest` on the whole project."""
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))            # nanokimi, wherever pytest was started
torch.set_num_threads(1)


def pytest_ignore_collect(collection_path, config):
    """True where no argument of the command line lies in this folder."""
    asked = [(config.invocation_params.dir / str(argument).split("::")[0]).resolve() for argument in config.args]
    return None if any(HERE in (path, *path.parents) for path in asked) else True
