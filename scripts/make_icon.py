"""Draw the plugin's icon: three scales of one image, a heatmap in the finest."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

SIDE, LARGE = 256, 1024
TARGET = Path(__file__).parents[1] / "plugins/napari/napari_atlas_wsi/icon.png"


def main() -> None:
    """Write the icon."""
    image = Image.new("RGBA", (LARGE, LARGE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((32, 32, 992, 992), 180, fill="#1d2540")
    cell, first = 200, 112
    heat = ["#2b4fa3", "#2fa39b", "#2b4fa3", "#2b4fa3"]
    heat += ["#2fa39b", "#f6d746", "#f0743a", "#2b4fa3"]
    heat += ["#2fa39b", "#f0743a", "#d4333f", "#2fa39b"]
    heat += ["#2b4fa3", "#2fa39b", "#2fa39b", "#2b4fa3"]
    for place, color in enumerate(heat):
        row, col = divmod(place, 4)
        x, y = first + col * cell, first + row * cell
        draw.rounded_rectangle((x + 8, y + 8, x + cell - 8, y + cell - 8), 28, fill=color)
    for inset, width in ((first - 14, 22), (first + cell - 12, 26)):
        box = (inset, inset, LARGE - inset, LARGE - inset)
        draw.rounded_rectangle(box, 44, outline="#ffffff", width=width)
    image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
