"""Images decode to the right pixels or to one clear line, and fit a square as the rules say."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mobillama.core.errors import UserError
from mobillama.vision.images import CLIP_MEAN, CLIP_STD, MOST_PIXELS, ImageRules, open_image

RULES = ImageRules(image_size=16, tokens=4)


def saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_cmyk_greys_palettes_and_alpha_become_the_colours_people_see():
    red_ink = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert open_image(saved(red_ink, "TIFF")).getpixel((0, 0)) == (255, 0, 0)
    half_grey = Image.fromarray(np.full((2, 2), 0x8080, dtype=np.uint16))
    assert open_image(saved(half_grey, "PNG")).getpixel((1, 1)) == (128, 128, 128)
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert open_image(saved(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("RGB", (2, 2), (0, 0, 255)).convert("P")
    assert open_image(saved(palette, "GIF")).getpixel((0, 0)) == (0, 0, 255)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_a_photo_is_turned_as_its_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to show
    assert open_image(saved(noise(8, 4), "JPEG", exif=exif)).size == (4, 8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"<svg onload='alert(1)'><script>alert(1)</script></svg>", "an SVG drawing"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run", "not an image of a known format"),
        (saved(noise(64, 64), "JPEG")[:700], "damaged or cut off"),
        (saved(noise(64, 64), "PNG")[:200], "damaged or cut off"),
    ],
)
def test_what_is_no_image_is_one_clear_line(data, said):
    with pytest.raises(UserError) as refused:
        open_image(data, where="photo.jpg")
    assert said in str(refused.value) and str(refused.value).startswith("photo.jpg: ")
    assert "\n" not in str(refused.value)


def test_every_truncation_of_a_file_is_an_image_or_one_line():
    whole = {kind: saved(noise(9, 7), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")}
    for kind, data in whole.items():
        for length in range(0, len(data), max(1, len(data) // 40)):
            try:
                assert open_image(data[:length], where=kind).mode == "RGB"
            except UserError as refused:
                assert str(refused).startswith(f"{kind}: ")


def test_a_bomb_is_refused_before_it_is_decoded():
    side = int(MOST_PIXELS**0.5) + 1
    bomb = saved(Image.new("1", (side, side)), "PNG")  # some kilobytes
    with warnings.catch_warnings(), pytest.raises(UserError, match=f"{side} x {side} pixels"):
        warnings.simplefilter("error")
        open_image(bomb, where="bomb.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.png: No such file"):
        open_image(tmp_path / "nothing.png")


def test_one_pixel_and_a_strip_of_fifty_thousand_fit():
    dot = RULES.pixels(Image.new("RGB", (1, 1), (255, 255, 255)))
    white = (1 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(dot, np.broadcast_to(white[:, None, None], (1, 3, 16, 16)), rtol=1e-5)
    strip = open_image(saved(Image.new("RGB", (1, 50_000), "white"), "PNG"))
    shown = np.asarray(RULES.squares(strip)[0])
    assert (shown[:, 8 if shown[0, 8].min() == 255 else 7] == 255).all()  # one column wide, in the middle
    assert (shown[:, 0] == RULES.mean_colour).all()


def test_padding_shows_the_mean_colour_beside_the_whole_image():
    square = np.asarray(RULES.squares(Image.new("RGB", (32, 16), "black"))[0])
    assert (square[:4] == RULES.mean_colour).all() and (square[12:] == RULES.mean_colour).all()
    assert (square[4:12] == 0).all()


@pytest.mark.parametrize("size", [(40, 40), (40, 40)])
def test_stretched_squares_are_what_transformers_makes_of_them(size):
    image = noise(*size)
    theirs = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    expected = theirs(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(RULES.pixels(image), expected, atol=2e-3)


def test_cropping_keeps_the_middle():
    wide = Image.new("RGB", (48, 16), "blue")
    wide.paste(Image.new("RGB", (16, 16), "red"), (16, 0))
    rules = ImageRules(image_size=16, tokens=4, fit="crop")
    assert (np.asarray(rules.squares(wide)[0]) == (255, 0, 0)).all()


def test_a_wide_image_is_cut_into_tiles_beside_the_whole():
    rules = ImageRules(image_size=16, tokens=4, tiles=4)
    wide = Image.new("RGB", (32, 16), "blue")
    wide.paste(Image.new("RGB", (16, 16), "red"), (0, 0))
    squares = [np.asarray(square) for square in rules.squares(wide)]
    assert len(squares) == 3 == rules.squares_of(wide.size)
    assert (squares[1] == (255, 0, 0)).all() and (squares[2] == (0, 0, 255)).all()
    assert rules.squares_of((16, 16)) == 1  # a small one gains nothing from tiles


def test_rules_come_back_from_a_model_folder(tmp_path):
    rules = ImageRules(image_size=16, tokens=4, fit="crop", tiles=2, mean=(0.1, 0.2, 0.3))
    rules.write(tmp_path)
    assert ImageRules.read(tmp_path) == rules
    with pytest.raises(UserError, match="a model of text only"):
        ImageRules.read(tmp_path / "elsewhere")
