"""Pictures: the content of a file becomes numbers of a fixed size. Pillow decodes."""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from blossom_ray.core.extras import module_of_extra
from blossom_ray.data.modalities.base import Media, MediaValue, UndecodableError, beginning_of

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded; Pillow is asked for no other format, whatever a file says that it is."""
MOST_PIXELS = 2**26
"""Of a picture, by its header, before anything of it is decoded: 8192 by 8192."""
_MANY_PIXELS = 2**24
_EXPECTED = "PNG, JPEG, WebP, GIF or BMP"
_DRAFT = 2
# Numbers, since Pillow, which has names for them, is imported when a picture is decoded.
_TURNS: dict[int, Transpose] = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # type: ignore[dict-item]
"""By orientation flag, as numbers of Pillow's `Transpose`."""

_one_large = threading.Lock()

Side = Annotated[int, Field(ge=1, le=4096)]


class ImageModality(Media):
    """Pictures: the contents of PNG, JPEG, WebP, GIF (its first frame) or BMP files, or paths of such files.

    Samples are (channels, height, width), from 0 to 1.
    """

    libraries: ClassVar = ("pillow",)

    kind: Literal["image"]
    size: Side | Annotated[tuple[Side, Side], Field(strict=False)] = (32, 32)
    """Height and width of a sample in pixels; one number: both."""
    channels: Literal[1, 3] = 3
    """3: red, green and blue. 1: brightness."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How a picture of another shape fills `size`: `crop` cuts off what sticks out on two sides, `pad` puts black
    beside it, `stretch` changes its shape."""

    def decoder(self) -> ImageDecoder:
        """As `Media`."""
        module_of_extra("PIL.Image", "pictures need Pillow", "images")
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return ImageDecoder(height, width, self.channels, self.fit)

    def version(self) -> int:
        """As `Media`."""
        return 1


@dataclass(frozen=True)
class ImageDecoder:
    """From a picture to (channels, height, width) uint8, 0 to 255.

    A picture is turned as its orientation flag says. What is transparent becomes white; of 16 bits the upper 8 count.
    It is resized with Pillow's bilinear filter, which averages over all pixels that a new one covers; one that has the
    size already is left as it is. A JPEG of at least four times the size is decoded at a half, a quarter or an eighth
    of its own (`draft`), never below twice the size asked for.
    """

    height: int
    width: int
    channels: int
    fit: str
    dtype: ClassVar = np.dtype(np.uint8)
    factor: ClassVar = 1 / 255

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)

    def __call__(self, value: MediaValue) -> npt.NDArray[np.uint8]:
        """As `Decoder`."""
        from PIL import Image, UnidentifiedImageError

        assert isinstance(value, bytes), "a picture is no text"
        try:
            with Image.open(io.BytesIO(value), formats=FORMATS) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise _too_large(f"{picture.width} x {picture.height} pixels")
                return self._sample(picture)
        except UndecodableError:
            raise
        except UnidentifiedImageError:
            raise UndecodableError(f"is no picture ({beginning_of(value)}); expected {_EXPECTED}") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large("many more pixels") from None
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever damage leads them to
            found = " ".join(str(error).split())[:100] or type(error).__name__
            raise UndecodableError(f"is a damaged picture ({found}); expected {_EXPECTED}, whole") from error

    def _sample(self, picture: Image) -> npt.NDArray[np.uint8]:
        num_pixels, size, flag = picture.width * picture.height, (self.width, self.height), 1
        is_jpeg = picture.format in ("JPEG", "MPO")
        if is_jpeg:
            flag = _orientation(picture)
            width, height = size if flag < 5 else size[::-1]
            picture.draft(None, (_DRAFT * width, _DRAFT * height))
            if not picture.info.get("progressive"):  # which has to be whole in memory, whatever becomes of it
                num_pixels = picture.width * picture.height
        # Several large ones at once would take gigabytes.
        with _one_large if num_pixels > _MANY_PIXELS else nullcontext():
            picture.load()
            if not is_jpeg:  # whose flag cannot be read before, or only by passing over what fails
                flag = _orientation(picture)
            found = _eight_bits(picture, "L" if self.channels == 1 else "RGB")
            return self._fitted(found if flag == 1 else found.transpose(_TURNS[flag]), size)

    def _fitted(self, found: Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        from PIL import Image, ImageOps

        if found.size != size:
            filter_ = Image.Resampling.BILINEAR
            match self.fit:
                case "crop":
                    found = ImageOps.fit(found, size, filter_)
                case "pad":
                    found = ImageOps.pad(found, size, filter_, color=0)
                case _:
                    found = found.resize(size, filter_)
        pixels = np.asarray(found)
        return np.ascontiguousarray(pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _orientation(picture: Image) -> int:
    """The orientation flag, 1 to 8; 1, as it is, where there is none or it cannot be read."""
    try:
        flag = picture.getexif().get(0x0112)
    except Exception:  # what is beside the pixels may be anything
        return 1
    return flag if flag in _TURNS else 1


def _eight_bits(picture: Image, mode: str) -> Image:
    """The picture in another mode, `L` or `RGB`, without transparency, and without the lower 8 of 16 bits."""
    from PIL import Image

    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        clear = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        picture = Image.new("RGB", picture.size, "white")
        picture.paste(clear, mask=clear)
    elif picture.mode == "CMYK":
        picture = picture.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)


def _too_large(found: str) -> UndecodableError:
    return UndecodableError(f"announces {found}; expected at most {MOST_PIXELS:,}")
