"""Decoding: exact where nothing is resized, the middle where something is, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from jsel.data import images


def encode(array, kind, **options):
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, kind, **options)
  return buffer.getvalue()


@pytest.fixture
def colours(rng):
  return rng.integers(0, 256, (7, 5, 3)).astype(np.uint8)


def test_png_is_exact(colours):
  np.testing.assert_array_equal(images.decode(encode(colours, "PNG"), size=0, channels=3), colours)


def test_grey_becomes_colour_and_colour_grey(colours):
  grey = colours[..., 0]
  as_colour = images.decode(encode(grey, "PNG"), size=0, channels=3)
  np.testing.assert_array_equal(as_colour, np.repeat(grey[..., None], 3, 2))
  as_grey = images.decode(encode(colours, "PNG"), size=0, channels=1)
  luma = colours @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
  np.testing.assert_allclose(as_grey[..., 0], luma, atol=1)


def test_transparency_is_dropped_and_palettes_are_resolved(colours):
  alpha = np.concatenate([colours, np.full((7, 5, 1), 9, np.uint8)], 2)
  np.testing.assert_array_equal(images.decode(encode(alpha, "PNG"), size=0, channels=3), colours)
  two = np.where(np.arange(35).reshape(7, 5, 1) % 2, 200, 10).astype(np.uint8).repeat(3, 2)
  buffer = io.BytesIO()
  palette = Image.fromarray(two).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
  palette.save(buffer, "PNG", transparency=0)
  np.testing.assert_array_equal(images.decode(buffer.getvalue(), size=0, channels=3), two)


@pytest.mark.parametrize(("height", "width"), [(40, 24), (24, 40), (24, 24)])
def test_the_middle_square_is_kept(height, width):
  # A ramp along the longer side: the middle of it is what must come out.
  across = np.linspace(0, 255, width).astype(np.uint8)
  down = np.linspace(0, 255, height).astype(np.uint8)
  ramp = np.stack(np.broadcast_arrays(across[None], down[:, None], np.uint8(7)), 2)
  found = images.decode(encode(ramp, "PNG"), size=8, channels=3).astype(float)
  assert found.shape == (8, 8, 3)
  side, top, left = 24, (height - 24) // 2, (width - 24) // 2
  # Bilinear with antialiasing keeps a ramp, but for the half pixels at the edge.
  means = ramp[top : top + side, left : left + side].reshape(8, 3, 8, 3, 3).mean((1, 3))
  np.testing.assert_allclose(found[1:-1, 1:-1], means[1:-1, 1:-1], atol=2)


def test_a_large_jpeg_is_close_to_its_small_self(rng):
  small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
  large = np.asarray(Image.fromarray(small).resize((512, 512), Image.Resampling.BICUBIC))
  found = images.decode(encode(large, "JPEG", quality=95), size=32, channels=3)
  expected = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BOX))
  assert np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kept", [0, 5, 40, 0.7])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_short_is_refused(rng, kind, kept):
  data = encode(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), kind)
  data = data[: int(kept * len(data)) if kept < 1 else kept]
  with pytest.raises(ValueError, match="no whole PNG or JPEG") as error:
    images.decode(data, size=0, channels=3)
  assert "\n" not in str(error.value)


def test_other_kinds_are_refused(colours):
  with pytest.raises(ValueError, match="no whole PNG or JPEG"):
    images.decode(encode(colours, "GIF"), size=0, channels=3)
  deep = encode(np.full((4, 4), 40000, np.uint16), "PNG")
  with pytest.raises(ValueError, match="more than 8 bits a channel"):
    images.decode(deep, size=0, channels=1)


def test_rows_are_named(colours):
  good, other = encode(colours, "PNG"), encode(colours[:6], "PNG")
  ids = np.array([17, 4])
  options = {"shape": (7, 5, 3), "what": "mine"}
  with pytest.raises(
    ValueError, match=r"mine: row 4 has 6x5 pixels, others have 7x5: set .*image_s"
  ):
    images.decode_rows([good, other], ids, size=0, **options)
  with pytest.raises(ValueError, match="mine: row 17 is no whole PNG or JPEG"):
    images.decode_rows([b"x", good], ids, size=0, **options)
  with pytest.raises(ValueError, match="channels=4: images have 3"):
    images.shape_of(good, size=0, channels=4, what="mine")
  with pytest.raises(ValueError, match="image_size=-1 is negative"):
    images.shape_of(good, size=-1, channels=3, what="mine")
