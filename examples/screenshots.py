"""Screenshots of the pages that verbs write, by headless Chromium, as small PNGs:

    python examples/screenshots.py scan=scanned/p53.html report=bench/report.html judge=new.fasta.judge/judge.html
    python examples/structure_page.py shown && python examples/screenshots.py viewer=shown/page.html --size 1150 950

write docs/scan.png, docs/report.png, docs/judge.png and docs/viewer.png. The pages hold all they need, and ask no
network for anything.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

COLOURS = 256  # of the palette: text, bars and ribbons need no more, and a PNG is a third as large


def shoot(page: Path, out: Path, *, width: int, height: int) -> Path:
    """The top of a page, `width` x `height` pixels, as a PNG with a palette.

    Raises:
        FileNotFoundError: there is no page, or no Chromium.
        subprocess.CalledProcessError: Chromium failed.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or not page.is_file():
        raise FileNotFoundError(f"{page if chromium else 'chromium'} is not there")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        # 3D without a graphics card
        drawing = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
        flags = ("--headless", "--no-sandbox", *drawing, "--hide-scrollbars", "--virtual-time-budget=20000")
        where = (f"--user-data-dir={folder}", f"--window-size={width},{height}", f"--screenshot={raw}")
        subprocess.run(
            [chromium, *flags, *where, page.resolve().as_uri()], check=True, capture_output=True, timeout=120
        )
        Image.open(raw).convert("RGB").quantize(COLOURS).save(out, optimize=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", metavar="NAME=PAGE.html", help="the picture's name, and what it shows")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the PNGs")
    parser.add_argument("--size", type=int, nargs=2, default=(1000, 760), metavar=("WIDTH", "HEIGHT"), help="pixels")
    options = parser.parse_args()
    for pair in options.pages:
        name, _, page = pair.partition("=")
        if not page:
            sys.exit(f"{pair}: expected NAME=PAGE.html")
        width, height = options.size
        print(shoot(Path(page), options.out / f"{name}.png", width=width, height=height))


if __name__ == "__main__":
    main()
