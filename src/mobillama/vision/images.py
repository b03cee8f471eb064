"""Images from files and bytes to pixels a vision tower takes: Pillow and NumPy, no torch.

An image file is as untrusted as any input. It is decoded only if it is of a known raster format and of a
size that fits into memory; whatever else it is, the answer is one clear line.
"""

import io
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mobillama.core.errors import UserError

Pixels = NDArray[np.float32]
Fit = Literal["pad", "crop", "stretch"]

FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
"""What is decoded; everything else that Pillow could run (EPS starts Ghostscript) is refused."""
MOST_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: 100 megapixels take 300 MB."""
PROCESSOR_FILE = "preprocessor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def open_image(source: Path | bytes, *, where: str | None = None) -> Image.Image:
    """Return an image whole, as RGB: turned as its EXIF data says, transparency on white, first frame only.

    Arguments:
        source: a file, or its content.
        where: what to call it in errors; the path if not given.

    Raises:
        UserError: it is missing, of another format, damaged, cut off, or too large.
    """
    name = where or (str(source) if isinstance(source, Path) else "image")
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; give the path of an image") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which nothing here reads
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                require_size(image.size, name)
                image.seek(0)
                return as_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise UserError(f"{name}: {what_it_is(data)}; give a JPEG, PNG, GIF, TIFF, WebP or BMP") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: too many pixels to decode; scale it down first") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        IndexError,
        TypeError,
        EOFError,
        OverflowError,
        KeyError,
        AttributeError,
        MemoryError,
    ) as error:  # fmt: skip - what decoders raise on damaged files
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"{name}: cannot be decoded ({reason}); it is damaged or cut off") from None


def opened(source: Path | str | bytes | Image.Image, *, where: str | None = None) -> Image.Image:
    """Return an image, given as a path, as its content or as Pillow opened it, as RGB.

    Raises:
        UserError: as ``open_image``.
    """
    if isinstance(source, Image.Image):
        require_size(source.size, where or "image")
        return as_rgb(source)
    return open_image(Path(source) if isinstance(source, str) else source, where=where)


def require_size(size: tuple[int, int], name: str) -> None:
    """Refuse an image that would take too much memory."""
    width, height = size
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{name}: {width} x {height} pixels, over {MOST_PIXELS // 1_000_000} million; scale it down first"
        )


def what_it_is(data: bytes) -> str:
    """Return why content is no image, as far as its beginning tells."""
    head = data[:512].lstrip().lower()
    if not data:
        return "an empty file"
    if head.startswith((b"<svg", b"<?xml")) or b"<svg" in head:
        return "an SVG drawing, which is a program and not pixels"
    return "not an image of a known format"


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB; what is transparent shows white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit greys to 8 bits; the upper byte is what they look like.
        greys = np.asarray(image).astype(np.float64)
        image = Image.fromarray((greys / 257).clip(0, 255).round().astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


@dataclass(frozen=True)
class ImageRules:
    """How an image becomes what the tower sees: one square or several, of numbers around zero.

    Arguments:
        image_size: side of the square the tower takes, in pixels.
        fit: ``pad`` to a square with the mean colour, ``crop`` its middle, or ``stretch``.
        tiles: most tiles that a large image is cut into, each shown as an image beside the whole;
            0 shows the whole only.
        tokens: that the language model sees of one square.

    Source: padding as in Liu et al. 2023 (LLaVA-1.5); tiles as in its "any resolution", section 3.4, here
    without the end-of-row tokens.
    """

    image_size: int
    tokens: int
    fit: Fit = "pad"
    tiles: int = 0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "ImageRules":
        """Return the rules that ``dataclasses.asdict`` gave, also after a way through JSON."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @classmethod
    def read(cls, directory: Path) -> "ImageRules":
        """Return the rules of a model folder.

        Raises:
            UserError: it has none, so it is a model of text only, or they cannot be read.
        """
        path = directory / PROCESSOR_FILE
        try:
            return cls.from_values(json.loads(path.read_text(encoding="utf-8"))["mobillama"])
        except FileNotFoundError:
            raise UserError(f"{directory}: a model of text only; leave the image out") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the image rules of a model of ours ({error})") from None

    def write(self, directory: Path) -> None:
        """Write the rules in transformers' keys for CLIP, with ours beside them."""
        size = self.image_size
        side = {"shortest_edge": size} if self.fit == "crop" else {"height": size, "width": size}
        values: dict[str, Any] = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True, "size": side, "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": self.fit == "crop", "crop_size": {"height": size, "width": size},
            "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": list(self.mean), "image_std": list(self.std),
            "do_convert_rgb": True, "mobillama": asdict(self),
        }  # fmt: skip
        (directory / PROCESSOR_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def squares(self, image: Image.Image) -> list[Image.Image]:
        """Return the squares an RGB image is shown as: the whole, then its tiles row by row."""
        whole = fitted(image, self.image_size, self.fit, self.mean_colour)
        across, down = self.grid(image.size)
        if across * down == 1:
            return [whole]
        side = self.image_size
        width, height = across * side, down * side
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        sheet = Image.new("RGB", (width, height), self.mean_colour)
        place = ((width - inner[0]) // 2, (height - inner[1]) // 2)
        sheet.paste(image.resize(inner, Image.Resampling.BICUBIC), place)
        corners = [(x * side, y * side) for y in range(down) for x in range(across)]
        return [whole, *(sheet.crop((x, y, x + side, y + side)) for x, y in corners)]

    def pixels(self, image: Image.Image) -> Pixels:
        """Return an RGB image as (squares, 3, image_size, image_size), normalised."""
        stacked = np.stack([np.asarray(square) for square in self.squares(image)])
        return self.normalised(stacked)

    def normalised(self, squares: NDArray[np.uint8]) -> Pixels:
        """Return bytes (n, S, S, 3) as numbers (n, 3, S, S) around zero."""
        mean, std = (np.asarray(each, dtype=np.float32)[:, None, None] for each in (self.mean, self.std))
        planes = squares.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # whole rows at a time from here
        planes *= 1 / (255 * std)
        planes -= mean / std
        return planes

    def squares_of(self, size: tuple[int, int]) -> int:
        """Return how many squares an image of this width and height is shown as."""
        across, down = self.grid(size)
        return 1 if across * down == 1 else 1 + across * down

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the tiles across and down that show an image largest, and of those the fewest."""
        width, height = size
        best, best_score = (1, 1), (0.0, 0)
        for across in range(1, self.tiles + 1):
            for down in range(1, self.tiles // across + 1):
                scale = min(across * self.image_size / width, down * self.image_size / height, 1.0)
                score = (round(scale * width) * round(scale * height), -across * down)
                if score > best_score:
                    best, best_score = (across, down), score
        return best

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The colour whose normalised value is nearest to zero."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue


def fitted(image: Image.Image, side: int, fit: Fit, colour: tuple[int, int, int]) -> Image.Image:
    """Return an RGB image as a square of ``side`` pixels."""
    width, height = image.size
    if fit == "pad" and width != height:
        longest = max(width, height)
        # Scaled first, so that a strip of 1 x 50,000 pixels never becomes a square of that side.
        scale = side / longest
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        sheet = Image.new("RGB", (side, side), colour)
        place = ((side - inner[0]) // 2, (side - inner[1]) // 2)
        sheet.paste(image.resize(inner, Image.Resampling.BICUBIC), place)
        return sheet
    if fit == "crop" and width != height:
        shortest = min(width, height)
        left, top = (width - shortest) // 2, (height - shortest) // 2
        image = image.crop((left, top, left + shortest, top + shortest))
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)
