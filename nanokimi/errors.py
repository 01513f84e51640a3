"""What a person can put right is one sentence that says what is wrong and what to do, and exit code 2. The rest keeps its traceback."""
import argparse
import errno
import functools
import math
import os
import sys
import time
from contextlib import contextmanager

import torch
from safetensors import SafetensorError


MOST_SEED, MOST_THREADS = 2 ** 32 - 1, 1024


class BadInput(ValueError):
    """Something a person can put right: a file, a folder, an option. Its text is one sentence."""


@contextmanager
def reading(path, advice: str = "put it back as it was, or name another folder"):
    """Whatever goes wrong while a damaged, foreign or hostile file is read is the file's fault: BadInput."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BadInput) or getattr(error, "filename", None) or out_of_memory(error):
            raise                                                        # said already, not there, no memory for it: not the file's fault
        raise BadInput(f"{path} cannot be used ({first_words(error)}): {advice}.") from error


def first_words(error: Exception, most: int = 150) -> str:
    """The beginning of an error's text, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + " ..."


def sentence(error: Exception) -> str:
    """One line for a BadInput, for what the operating system refuses, and for safetensors' words for the same."""
    if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
        return "the disk is full: make room, then give the same command again. What was saved before is intact."
    if out_of_memory(error):
        return "not enough memory: close other programs, or ask for less (fewer --documents or --problems, a smaller --preset)."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}. Change that, or name another place."
    return " ".join(str(error).split())


def command(main):
    """main() of a script: where a person can put it right, it ends with one sentence and exit code 2."""
    @functools.wraps(main)
    def wrapped(*args):
        try:
            return main(*args)
        except KeyboardInterrupt:                                        # where a loop does not save of its own accord
            if not second():
                print("stopped: what was saved stays, and the same command goes on from there.", file=sys.stderr, flush=True)
            sys.exit(130)
        except BrokenPipeError:                                          # nobody reads what is printed: no place for a sentence
            raise
        except (BadInput, OSError, SafetensorError) as error:
            fail(sentence(error))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            fail(sentence(error))
    return wrapped


def out_of_memory(error: Exception) -> bool:
    """Python's, torch's on a GPU, and torch's on a CPU, which is a RuntimeError like any other."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def second() -> bool:
    """Whether this is a second process of a command, which leaves words to the first."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


def fail(text: str):
    """Prints one sentence and ends with exit code 2. A second process waits: the first one says the same, and ends it."""
    if second():
        time.sleep(3)
    print(text, file=sys.stderr, flush=True)
    sys.exit(2)


def number(kind, least, most=math.inf):
    """The argparse type of a finite number from least to most."""
    def parse(text):
        value = kind(text)
        if not least <= value <= most or math.isinf(value):
            raise argparse.ArgumentTypeError(f"want {least} or more" if most == math.inf else f"want {least} to {most}")
        return value
    parse.__name__ = kind.__name__                                       # argparse says it where the text is no number
    return parse
