"""Drawing: shapes that are where they should be, visible, and told apart when small."""

import numpy as np
import pytest

from nanokimi.world import content, draw


def blank(h=48, w=48, value=0):
    return np.full((h, w, 3), value, np.float32)


def mask_of(kind, size, cx=24.0, cy=24.0):
    canvas = blank()
    draw.draw_shape(canvas, kind, "red", cx, cy, size)
    return canvas[..., 0] / draw.COLOURS["red"][0]                          # (48, 48) coverage


@pytest.mark.parametrize("kind", draw.KINDS)
@pytest.mark.parametrize("size", (8, 15, 24, 44))
def test_a_shape_fills_its_box(kind, size):
    mask = mask_of(kind, size)
    touched, covered = np.nonzero(mask > 0.03), np.nonzero(mask > 0.49)
    assert np.ptp(touched[0]) + 1 >= size - 1 and np.ptp(touched[1]) + 1 >= size - 1
    (y0, x0), (y1, x1) = np.min(covered, 1), np.max(covered, 1) + 1
    assert abs((x0 + x1) / 2 - 24) <= 1.5 and abs((y0 + y1) / 2 - 24) <= 1.5
    assert size - 4 <= x1 - x0 <= size + 1 and size - 4 <= y1 - y0 <= size + 1


@pytest.mark.parametrize("kind, area", [("circle", np.pi / 4), ("square", 1), ("triangle", 0.5), ("diamond", 0.5), ("ring", np.pi * 3 / 16),
                                        ("cross", 0.34 * 2 - 0.34 ** 2)])
def test_areas_are_the_textbook_ones(kind, area):
    assert mask_of(kind, 32).sum() / 32 ** 2 == pytest.approx(area, abs=0.02)


def test_every_kind_is_upright_and_symmetric():
    for kind in draw.KINDS:
        mask = mask_of(kind, 24)
        assert np.abs(mask - mask[:, ::-1]).max() < 1e-6, kind
    thirds = {kind: np.array_split(mask_of(kind, 24)[12:36].sum(1), 3) for kind in ("triangle", "heart")}
    assert thirds["triangle"][2].sum() > thirds["triangle"][0].sum() and thirds["heart"][0].sum() > thirds["heart"][2].sum()
    assert mask_of("ring", 8)[23:25, 23:25].max() == 0, "a small ring must keep its hole"


def test_kinds_differ_at_8_pixels():
    """Each kind, at every quarter pixel offset, is nearest to its own centred form: one look is enough to name it."""
    forms = {kind: mask_of(kind, 8) for kind in draw.KINDS}
    for kind in draw.KINDS:
        for dx, dy in ((0, 0), (0.25, 0.5), (0.5, 0.25), (0.25, 0.25)):
            look = mask_of(kind, 8, 24 + dx, 24 + dy)
            error = {other: np.abs(look - form).sum() for other, form in forms.items()}
            assert min(error, key=error.get) == kind, (kind, dx, dy)
    gaps = [np.abs(forms[a] - forms[b]).sum() for a in forms for b in forms if a < b]
    assert min(gaps) > 8, "two kinds differ by less than 8 of their 64 pixels"


def test_quarter_pixels_move_the_centre_of_mass():
    x = np.arange(48) + 0.5
    for step in range(8):
        mask = mask_of("circle", 9, 20 + step / 4, 24)
        assert (mask.sum(0) * x).sum() / mask.sum() == pytest.approx(20 + step / 4, abs=0.02)


@pytest.mark.parametrize("cx, cy", [(0, 0), (47, 2), (24, 50), (-3, 24)])
def test_partly_outside_equals_a_cut_from_a_larger_canvas(cx, cy):
    small, large = blank(), blank(144, 144)
    draw.draw_shape(small, "star", "yellow", cx, cy, 20)
    draw.draw_shape(large, "star", "yellow", cx + 48, cy + 48, 20)
    assert small.any() and np.array_equal(small, large[48:96, 48:96])


def test_wholly_outside_draws_nothing():
    canvas = blank(value=9)
    draw.draw_shape(canvas, "circle", "red", -40, 10, 20)
    draw.draw_pictogram(canvas, "dog", 24, 100, 20)
    assert (canvas == 9).all()


def test_colours_differ_and_stand_out_from_any_background():
    values = np.stack(list(draw.COLOURS.values()))
    gaps = np.linalg.norm(values[:, None] - values, axis=-1) + 1e9 * np.eye(len(values))
    assert len(values) == 8 and gaps.min() > 90
    rng = np.random.default_rng(0)
    for _ in range(300):
        ground = draw.background(rng, 32, 48).reshape(-1, 8, 3).mean(1)     # what an 8 pixel strip looks like
        for name in draw.COLOURS:
            assert np.linalg.norm(ground - draw.shade(name, rng), axis=-1).min() > 35, name


def test_backgrounds_are_seeded_varied_and_plain_on_request():
    first, again = (draw.background(np.random.default_rng(5), 40, 56) for _ in range(2))
    assert first.shape == (40, 56, 3) and first.dtype == np.float32 and np.array_equal(first, again)
    rng = np.random.default_rng(1)
    spread = [np.ptp(draw.background(rng, 40, 56), (0, 1)).max() for _ in range(60)]
    assert 10 < sum(s == 0 for s in spread) < 30 and max(spread) > 60
    assert all(np.ptp(draw.background(rng, 20, 20, level=0), (0, 1)).max() == 0 for _ in range(20))
    lightness = [draw.background(rng, 8, 8).mean() for _ in range(200)]
    assert min(lightness) < 50 and max(lightness) > 205


def test_noise_is_loud_enough_and_has_mean_zero():
    field = draw.noise_field()
    assert abs(field.mean()) < 0.05 and field.std() == pytest.approx(1, abs=0.05)


def test_gradient_runs_from_nothing_to_the_whole_change():
    change = np.array([50.0, -20, 10])
    for angle in (0, 1, 2.5, 4):
        ramp = draw.gradient(30, 20, change, angle)
        assert ramp.shape == (30, 20, 3) and np.abs(ramp).min() < 1e-3
        assert np.abs(ramp).reshape(-1, 3).max(0) == pytest.approx(np.abs(change), rel=1e-3)


def test_shade_jitters_only_with_a_generator():
    assert np.array_equal(draw.shade("red"), draw.COLOURS["red"])
    jittered = np.stack([draw.shade("red", np.random.default_rng(seed)) for seed in range(50)])
    assert 2 < jittered.std(0).min() and np.abs(jittered - draw.COLOURS["red"]).max() <= 12


def test_a_pictogram_is_composited_exactly():
    canvas = blank(value=100)
    draw.draw_pictogram(canvas, "cat", 24, 24, 24)
    rgba = content.render("cat", 24).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    assert np.abs(canvas[12:36, 12:36] - (rgba[..., :3] * alpha + 100 * (1 - alpha))).max() < 0.01
    high, wide = np.ptp(np.nonzero(alpha[..., 0] >= 0.5), 1) + 1
    assert (canvas[:12] == 100).all() and wide == 24 and high < 24          # a cat is wider than high


def test_digits_are_written_in_a_row():
    images, _ = content.digits()
    canvas = blank(30, 80, value=255)
    draw.draw_digits(canvas, images[:3], 5, 4, 2, (0, 0, 0))
    assert (canvas[:, :5] == 255).all() and (canvas[:, 5 + 48:] == 255).all() and (canvas[4 + 16:] == 255).all()
    ink = (255 - canvas[4:20, 5:53, 0]) / 255 * 16                          # (16, 48): twice as large, linearly interpolated
    small = ink.reshape(8, 2, 24, 2).mean((1, 3))
    assert np.corrcoef(small.ravel(), np.concatenate(list(images[:3]), 1).ravel())[0, 1] > 0.97


def test_clear_errors():
    with pytest.raises(AssertionError, match="float32 canvas"):
        draw.draw_shape(np.zeros((9, 9, 3), np.uint8), "circle", "red", 4, 4, 5)
    with pytest.raises(AssertionError, match="blob"):
        draw.draw_shape(blank(), "blob", "red", 4, 4, 5)


def test_finish_rounds_and_clips():
    assert draw.finish(np.array([[[-9, 3.6, 300]]], np.float32)).tolist() == [[[0, 4, 255]]]
