"""The explorer's page as HTML: names stay text, and pictures are those that were given."""

import io
import re
from base64 import b64decode

import numpy as np
from PIL import Image

from idsds.plots.explore import Thumbnail, strip_card


def test_thumbnails_hold_their_pixels_and_names_stay_text():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)) / 255
    page = strip_card([Thumbnail('<b>"a"', 0.5, pixels), Thumbnail("unread", np.nan, None)])
    assert "&lt;b&gt;&quot;a&quot;" in page
    assert '<b>"a"' not in page
    first, second = re.findall(r'<img alt="([^"]*)" src="([^"]*)">', page)
    assert second == ("unread", ""), "without pixels there is no picture"
    found = Image.open(io.BytesIO(b64decode(first[1].removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(found), np.round(255 * pixels))
