"""Rebuild ablation/data/assets (sprite sheets, photographs, index, credits, licences) from unpacked packages.

The sources are ordinary packages, unpacked by hand; every path is an argument:
  --noto      emoji-datasource-google 16.0.0 (npm), the folder with emoji.json
  --twemoji   emoji-datasource-twitter 16.0.0 (npm), the folder with emoji.json
  --fluent    @lobehub/fluent-emoji-3d 1.1.0 (npm), the folder with assets/
  --skimage   scikit-image 0.26.0 (Python), its data/ folder
  --sklearn   scikit-learn 1.9.1 (Python), its datasets/images/ folder
  --lomiri    lomiri-wallpapers-16.04 and -20.04, version 20.04.0 (Debian), both unpacked below one folder
  --licences  a folder with the plain texts Apache-2.0 and CC0-1.0 (Debian: common-licenses)

Example: python scripts/make_scene_assets.py --noto google/package --twemoji twitter/package --fluent fluent/package \
    --skimage SITE/skimage/data --sklearn SITE/sklearn/datasets/images --lomiri unpacked --licences /usr/share/common-licenses
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

SPRITE = 64  # pixels per side of a cell of a sprite sheet
COLUMNS = 30  # cells per row of a sheet
PHOTO = 384  # longer side of a background photograph
HELD_OUT = 0.2  # share of each class's concepts kept for the test split
LEAST_HELD_OUT = 5  # at least this many, or a small class's test score hangs on two or three drawings

# class -> subcategories of emoji.json
CLASSES: dict[str, tuple[str, ...]] = {
    "mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "sea, reptile or bug": ("animal-amphibian", "animal-reptile", "animal-marine", "animal-bug"),
    "plant": ("plant-flower", "plant-other"),
    "fruit or vegetable": ("food-fruit", "food-vegetable"),
    "meal": ("food-prepared", "food-asian"),
    "sweet or drink": ("food-sweet", "drink"),
    "ground vehicle": ("transport-ground",),
    "air or water craft": ("transport-air", "transport-water"),
    "building": ("place-building", "place-religious"),
    "clothing": ("clothing",),
    "tool": ("tool", "science"),
    "sport or game": ("sport", "game"),
    "face": (
        "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
        "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative",
    ),
    "hand": ("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed", "hands", "hand-prop"),
    "person": ("person", "person-gesture", "person-role", "person-fantasy", "person-activity", "person-sport"),
}  # fmt: skip

# drawings that do not show their class (parts, signs, symbols), or show two classes at once
EXCLUDED = {
    "feet", "paw_prints", "feather", "wing", "hatching_chick", "spider_web", "microbe", "shell", "empty_nest", "nest_with_eggs",
    "bricks", "rock", "wood", "building_construction", "ice_cube", "beverage_box", "baby_bottle", "pouring_liquid",
    "busstop", "vertical_traffic_light", "traffic_light", "octagonal_sign", "construction", "fuelpump", "wheel", "rotating_light",
    "motorway", "railway_track", "oil_drum", "station", "railway_car", "anchor", "ring_buoy", "seat", "parachute",
    "spades", "hearts", "diamonds", "clubs", "black_joker", "mahjong", "flower_playing_cards", "gun", "mirror_ball", "dna",
    "skull", "skull_and_crossbones", "selfie", "horse_racing", "spiral_note_pad", "fishing_pole_and_fish",
    "petri_dish", "brown_mushroom", "stadium", "kaaba", "folding_hand_fan", "person_in_steamy_room",
}  # fmt: skip

# nearly the same drawing under two names: kept on one side of the split
SAME_CONCEPT = {
    "small-airplane": "airplane", "airplane-departure": "airplane", "airplane-arriving": "airplane", "broken-chain": "chains",
    "link": "chains", "beers": "beer", "ice-cream": "icecream", "clinking-glasses": "champagne", "house-with-garden": "house",
    "house-buildings": "house", "passenger-ship": "ship", "+": "thumb", "-1": "thumb", "monkey-face": "monkey",
    "black-cat": "cat", "guide-dog": "dog", "service-dog": "dog", "green-apple": "apple", "light-rail": "metro",
    "trolleybus": "bus", "pick": "hammer", "hammer-and-pick": "hammer", "hammer-and-wrench": "hammer", "hotel": "love-hotel",
    "truck": "articulated-lorry",
    "aerial-tramway": "cableway", "mountain-cableway": "cableway", "suspension-railway": "cableway", "train": "tram",
    "dark-sunglasses": "eyeglasses", "hatched-chick": "baby-chick", "chicken": "baby-chick",
}  # fmt: skip

# file -> title, author, licence, split, and the part kept (left, top, right, bottom as shares of width and height)
WHOLE = (0.0, 0.0, 1.0, 1.0)
PHOTOS: dict[str, tuple[str, str, str, str, tuple[float, float, float, float]]] = {
    "Bridge_by_Sander_Klootwijk.jpg": ("Bridge", "Sander Klootwijk", "CC-BY-SA-4.0", "train", WHOLE),
    "Dragonfly_by_Bolly.jpg": ("Dragonfly", "Bolly", "CC-BY-SA-4.0", "train", WHOLE),
    "Picture_0B_by_freespace.jpg": ("Picture 0B", 'Trevor "Freespace"', "CC-BY-4.0", "test", WHOLE),
    "Picture_1A_by_freespace.jpg": ("Picture 1A", 'Trevor "Freespace"', "CC-BY-4.0", "train", WHOLE),
    "Wine_by_Jakkub_Mede.jpg": ("Wine", "Jakub Mede", "CC-BY-4.0", "test", WHOLE),
    "aitzgorri_by_Aitzol_Berasategi.jpg": ("Aitzgorri", "Aitzol Berasategi", "CC-BY-4.0", "train", WHOLE),
    "analogpattern_by_Peter_Nerlich.jpg": ("Analog pattern", "Peter Nerlich", "CC-BY-SA-4.0", "train", WHOLE),
    "free_by_Peter_Nerlich.jpg": ("Free", "Peter Nerlich", "CC-BY-SA-4.0", "train", (0.0, 0.0, 1.0, 0.55)),
    "greentock_by_Peter_Nerlich.jpg": ("Greentock", "Peter Nerlich", "CC-BY-SA-4.0", "train", WHOLE),
    "life_by_Aitzol_Berasategi.jpg": ("Life", "Aitzol Berasategi", "CC-BY-4.0", "train", WHOLE),
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": ("Picos de Europa", "Aitzol Berasategi", "CC-BY-4.0", "test", WHOLE),
    "seeding_by_Clements_Engelhardt.jpg": ("Seeding", "Clemens Engelhardt", "CC0-1.0", "train", WHOLE),
    "sunset_by_Aitzol_Berasategi.jpg": ("Sunset", "Aitzol Berasategi", "CC-BY-4.0", "train", WHOLE),
    "Kleiber_by_Lukas_Baubkus.jpg": ("Kleiber", "Lukas Baubkus", "CC-BY-SA-3.0", "train", (0.0, 0.0, 0.42, 1.0)),
    "china.jpg": ("China", "danielbuechele", "CC-BY-2.0", "train", WHOLE),
    "flower.jpg": ("Flower", "vultilion (also credited to danielbuechele)", "CC-BY-2.0", "test", WHOLE),
    "coffee.png": ("Coffee", "Rachel Michetti", "CC0-1.0", "train", WHOLE),
    "rocket.jpg": ("Rocket launch site", "SpaceX", "public domain", "train", (0.0, 0.0, 0.42, 1.0)),
    "hubble_deep_field.jpg": ("Hubble deep field", "NASA", "public domain", "train", WHOLE),
    "ihc.png": ("Immunohistochemistry", "Andreas Preuss (marauder)", "CC0-1.0", "train", WHOLE),
    "retina.jpg": ("Retina", "Mikael Häggström", "CC0-1.0", "test", (0.16, 0.16, 0.84, 0.84)),
    "brick.png": ("Brick", "CC0Textures", "CC0-1.0", "train", WHOLE),
    "grass.png": ("Grass", "linolafett", "CC0-1.0", "train", WHOLE),
    "gravel.png": ("Gravel", "CC0Textures", "CC0-1.0", "test", WHOLE),
}

VENDORS = {
    "noto": ("Noto emoji", "Google", "Apache-2.0", "emoji-datasource-google 16.0.0"),
    "twemoji": ("Twemoji", "Twitter, Inc and other contributors", "CC-BY-4.0", "emoji-datasource-twitter 16.0.0"),
    "fluent": ("Fluent emoji (3D)", "Microsoft Corporation", "MIT", "@lobehub/fluent-emoji-3d 1.1.0"),
}

MIT_FLUENT = """MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

LICENCE_URIS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://opensource.org/license/mit",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "public domain": "",
}


def code_points(text: str) -> tuple[str, ...]:
    """Split a code-point string into lower-case points without the presentation selector, on which vendors disagree."""
    return tuple(point for point in text.lower().split("-") if point != "fe0f")


def concept_of(entry: dict[str, Any], class_name: str) -> str:
    """Name the concept of one drawing; near-copies (genders, directions, left and right) share one concept."""
    if class_name == "person":
        # man, woman, adult; gender signs; "facing right": the rest is what the person does or wears
        common = {"1f468", "1f469", "1f9d1", "2640", "2642", "27a1", "200d"}
        rest = [point for point in code_points(entry["unified"]) if point not in common]
        return "person-" + "-".join(rest) if rest else "person-plain"
    words = re.split(r"[_\-]", entry["short_name"])
    sides = {"left", "right", "leftwards", "rightwards", "up", "down", "facing", "front", "side", "oncoming", "male", "female"}
    kept = [word.rstrip("0123456789") for word in words if word not in sides]
    name = "-".join(word for word in kept if word) or entry["short_name"]
    return SAME_CONCEPT.get(name, name)


def collect_concepts(noto: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Map (class, concept) to its drawings' entries of emoji.json."""
    class_of = {subcategory: name for name, subcategories in CLASSES.items() for subcategory in subcategories}
    concepts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in sorted(json.loads((noto / "emoji.json").read_text()), key=lambda entry: entry["sort_order"]):
        class_name = class_of.get(entry["subcategory"])
        if class_name and not EXCLUDED & set(entry["short_names"]):
            concepts.setdefault((class_name, concept_of(entry, class_name)), []).append(entry)
    return concepts


def held_out(concepts: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Choose the test concepts of every class by the hash of their name, so that adding a drawing moves no other."""
    chosen: set[tuple[str, str]] = set()
    for name in CLASSES:
        own = [key for key in concepts if key[0] == name]
        own.sort(key=lambda key: hashlib.sha256("/".join(key).encode()).hexdigest())
        chosen.update(own[: max(LEAST_HELD_OUT, round(HELD_OUT * len(own)))])
    return chosen


def open_sprites(arguments: argparse.Namespace) -> dict[str, dict[tuple[str, ...], Path]]:
    """Map each vendor and code-point sequence to its picture file."""
    files = {
        "noto": sorted((arguments.noto / "img/google/64").glob("*.png")),
        "twemoji": sorted((arguments.twemoji / "img/twitter/64").glob("*.png")),
        "fluent": sorted((arguments.fluent / "assets").glob("*.webp")),
    }
    return {vendor: {code_points(path.stem): path for path in paths} for vendor, paths in files.items()}


def make_sheets(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write one sprite sheet per vendor; return the concepts with their cells, and each sheet's file name."""
    concepts = collect_concepts(arguments.noto)
    test = held_out(list(concepts))
    pictures = open_sprites(arguments)
    cells: dict[str, list[Path]] = {vendor: [] for vendor in VENDORS}
    index = []
    for key, entries in concepts.items():
        sprites: list[list[Any]] = []
        for entry in entries:
            for number, vendor in enumerate(VENDORS):
                if path := pictures[vendor].get(code_points(entry["unified"])):
                    sprites.append([number, len(cells[vendor]), entry["short_name"]])
                    cells[vendor].append(path)
        split = "test" if key in test else "train"
        index.append({"name": key[1], "class": list(CLASSES).index(key[0]), "split": split, "sprites": sprites})
    names = {}
    for vendor, paths in cells.items():
        sheet = Image.new("RGBA", (COLUMNS * SPRITE, -(-len(paths) // COLUMNS) * SPRITE))
        for cell, path in enumerate(paths):
            sprite = Image.open(path).convert("RGBA").resize((SPRITE, SPRITE), Image.Resampling.LANCZOS)
            sheet.paste(sprite, (cell % COLUMNS * SPRITE, cell // COLUMNS * SPRITE))
        names[vendor] = f"sprites_{vendor}.webp"
        sheet.save(arguments.out / names[vendor], quality=90, alpha_quality=100, method=4)
    return index, names


def make_photos(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Write the background photographs; return their index entries."""
    folders = {"scikit-image 0.26.0": arguments.skimage, "scikit-learn 1.9.1": arguments.sklearn}
    index = []
    for name, (title, author, licence, split, box) in PHOTOS.items():
        package = next((package for package, folder in folders.items() if (folder / name).exists()), "lomiri-wallpapers 20.04.0")
        folder = folders.get(package, arguments.lomiri)
        path = next(iter(sorted(folder.rglob(name))))
        image = Image.open(path).convert("RGB")
        image = image.crop((round(box[0] * image.width), round(box[1] * image.height),
                            round(box[2] * image.width), round(box[3] * image.height)))  # fmt: skip
        image.thumbnail((PHOTO, PHOTO), Image.Resampling.LANCZOS)
        file = f"photo_{Path(name).stem.split('_by_')[0].lower()}.webp"
        image.save(arguments.out / file, quality=85, method=4)
        index.append({"file": file, "title": title, "author": author, "licence": licence,
                      "package": package, "original": name, "split": split})  # fmt: skip
    return index


def write_licences(arguments: argparse.Namespace) -> None:
    """Write the licence texts that the sources carry; the others are given by address in the credits."""
    folder = arguments.out / "licences"
    folder.mkdir(exist_ok=True)
    for name in ("Apache-2.0", "CC0-1.0"):
        (folder / f"{name}.txt").write_text((arguments.licences / name).read_text())
    (folder / "MIT.txt").write_text(MIT_FLUENT)
    copyright_file = next(iter(sorted(arguments.lomiri.rglob("copyright")))).read_text()
    stanzas = re.split(r"^License: ", copyright_file, flags=re.MULTILINE)
    for name in ("CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"):
        body = max((stanza for stanza in stanzas if stanza.startswith(name + "\n")), key=len).split("\n", 1)[1]
        body = body.split("\n\n")[0]  # a stanza ends at the first empty line; its own empty lines are dots
        lines = ["" if line.strip() == "." else line.removeprefix(" ") for line in body.splitlines()]
        (folder / f"{name}.txt").write_text("\n".join(lines).strip() + "\n")


def write_credits(out: Path, sheets: dict[str, str], photos: list[dict[str, str]]) -> None:
    """Write CREDITS.md: every file, its maker, its licence, and what was changed."""
    intro = """
        # Credits of the scene assets

        These files are art and photographs of others, each under its own licence, which is not the project's. All were
        changed: drawings scaled to 64 pixels and packed into sheets, photographs cropped and scaled down; all stored as
        WebP. A generated scene puts one drawing on one photograph, with size, place, rotation and colour changed: whoever
        passes scenes on must give the credits below, and share scenes on the CC-BY-SA photographs alike.
        Names and classes of the drawings come from emoji.json of emoji-datasource (MIT, Cal Henderson).
        Licence texts are in licences/. Written by scripts/make_scene_assets.py.
    """
    lines = [textwrap.dedent(intro).strip()]
    lines += ["", "## Drawings", "", "| file | art | by | licence | taken from |", "|---|---|---|---|---|"]
    for vendor, (art, author, licence, package) in VENDORS.items():
        lines.append(f"| {sheets[vendor]} | {art} | {author} | {_linked(licence)} | {package} |")
    lines += ["", "## Photographs", "", "| file | title | by | licence | taken from |", "|---|---|---|---|---|"]
    for photo in photos:
        source = f"{photo['package']}, {photo['original']}"
        lines.append(f"| {photo['file']} | {photo['title']} | {photo['author']} | {_linked(photo['licence'])} | {source} |")
    (out / "CREDITS.md").write_text("\n".join(lines) + "\n")


def _linked(licence: str) -> str:
    """Write a licence as a link where it has an address."""
    return f"[{licence}]({LICENCE_URIS[licence]})" if LICENCE_URIS[licence] else licence


def main() -> None:
    """Read the arguments and write every asset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("noto", "twemoji", "fluent", "skimage", "sklearn", "lomiri", "licences"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "ablation/data/assets")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in [*arguments.out.glob("*.webp"), arguments.out / "index.json"]:
        old.unlink(missing_ok=True)
    concepts, sheets = make_sheets(arguments)
    photos = make_photos(arguments)
    write_licences(arguments)
    write_credits(arguments.out, sheets, photos)
    index = {"sprite": SPRITE, "columns": COLUMNS, "classes": list(CLASSES), "sheets": list(sheets.values()),
             "photos": photos, "concepts": concepts}  # fmt: skip
    (arguments.out / "index.json").write_text(json.dumps(index, separators=(",", ":"), ensure_ascii=True))
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    drawings = sum(len(concept["sprites"]) for concept in concepts)
    print(f"{len(concepts)} concepts, {drawings} drawings, {len(photos)} photographs, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
