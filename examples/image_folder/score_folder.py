"""Score a folder of existing images.

Run: python examples/image_folder/score_folder.py

The script draws the images itself, so that the example needs no download. Replace them with yours:
`<folder>/<prompt>/<seed>.png`. The name of a prompt's folder is its text or its index.
"""

import random
from pathlib import Path

from PIL import Image, ImageDraw

import autolora_eval

HERE = Path(__file__).parent
COLOURS = [("red", "blue"), ("green", "black")]  # of the prompts 0 and 1


def draw_images(folder: Path) -> None:
    """Draw three images for each of the two prompts of `benchmark.yaml`."""
    for prompt, (colour, background) in enumerate(COLOURS):
        (folder / str(prompt)).mkdir(parents=True, exist_ok=True)
        for seed in range(3):
            random_numbers = random.Random(seed)
            image = Image.new("RGB", (64, 64), background)
            x, y = random_numbers.randrange(5, 30), random_numbers.randrange(5, 30)
            ImageDraw.Draw(image).ellipse((x, y, x + 28, y + 28), fill=colour)
            image.save(folder / str(prompt) / f"{seed}.png")


def main(folder: Path = Path("reports/drawn_images")) -> None:
    """Draw the images, score them and print their row of the table."""
    draw_images(folder)
    run = autolora_eval.score_images(
        folder, HERE / "benchmark.yaml", Path("reports/image_folder"), name="Drawn"
    )
    print(run.table[["method", "diversity", "pc", "sa", "div_pc", "div_sa"]].to_string(index=False))


if __name__ == "__main__":
    main()
