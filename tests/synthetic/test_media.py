"""Pictures of neighboring looks stay apart, and a value of pictures has one look."""

import io

import numpy as np
import pytest
from PIL import Image

from bundle_mllm.synthetic.media import draw_picture, picture_look


@pytest.mark.parametrize(("num_levels", "num_sides"), [(4, 1), (24, 2), (6, 3), (16, 1)])
def test_each_value_has_a_look_of_its_own_and_sides_of_a_level_have_one_texture_and_hues_far_apart(
    num_levels, num_sides
):
    looks = {
        (level, side): picture_look(level, side, num_levels, num_sides)
        for level in range(num_levels)
        for side in range(num_sides)
    }
    assert len({(texture, round(hue % 1, 6)) for texture, hue in looks.values()}) == len(looks)
    for (level, side), (texture, hue) in looks.items():
        first_texture, first_hue = looks[level, 0]
        assert texture == first_texture
        assert hue - first_hue == pytest.approx(side / num_sides)


def test_neighboring_hues_of_pictures_do_not_overlap():
    rng = np.random.default_rng(0)
    spread = 0.5 / 48

    def angle(hue: float) -> float:
        with Image.open(io.BytesIO(draw_picture("jacket", 0, hue, spread, rng))) as image:
            pixels = np.asarray(image, dtype=float).reshape(64, 64, 3)[25:40, 25:40].reshape(-1, 3).mean(axis=0)
        red, green, blue = pixels
        return np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1

    for number in range(12):
        distances = np.array([angle(number / 12) for _ in range(4)]) * 12 - number
        assert np.abs((distances + 6) % 12 - 6).max() < 0.75
