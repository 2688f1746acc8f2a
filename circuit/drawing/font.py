"""The shipped font: the only one that Graphviz sees, and part of every SVG."""

from __future__ import annotations

import base64
import html
import io
import os
import re
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["font_environment", "with_font"]

FAMILY = "Persona Circuits Sans"
FONTS = Path(__file__).parent / "fonts"


def font_environment(folder: Path) -> dict[str, str]:
    """The environment in which fontconfig finds the shipped font alone.

    It reads a copy in ``folder``, as it writes into the folders that it reads.
    """
    for font in FONTS.glob("*.ttf"):
        shutil.copyfile(font, folder / font.name)
    settings = folder / "fonts.conf"
    place = escape(str(folder))
    settings.write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n'
        f"<fontconfig><dir>{place}</dir><cachedir>{place}</cachedir>"
        '<match target="font"><edit name="hinting" mode="assign"><bool>false</bool></edit>'
        '<edit name="hintstyle" mode="assign"><const>hintnone</const></edit></match>'
        "</fontconfig>\n",
        encoding="utf-8",
    )
    return {**os.environ, "FONTCONFIG_FILE": str(settings)}


def with_font(svg: str) -> str:
    """The same picture with those letters of the font in it that it uses, so that it looks the same anywhere."""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    font = TTFont(FONTS / "PersonaCircuitsSans.ttf", recalcTimestamp=False)
    letters = subset.Subsetter()
    letters.populate(text="".join(sorted(set(html.unescape(svg)))))
    letters.subset(font)
    font.flavor, out = "woff", io.BytesIO()
    font.save(out)
    data = base64.b64encode(out.getvalue()).decode()
    face = f'@font-face{{font-family:"{FAMILY}";src:url(data:font/woff;base64,{data})}}'
    return re.sub(r"<svg[^>]*>", lambda tag: f"{tag[0]}\n<style>{face}</style>", svg, count=1)
