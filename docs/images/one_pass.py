"""Draw `one_pass.png`: what the quickstart's model predicts for three of its validation scenes.

python tools/train.py configs/quickstart/shapes.py
python docs/images/one_pass.py [work_dirs/shapes/model]
"""

import sys
from pathlib import Path

from PIL import Image

import vitdense
from vitdense.config.load import load_config
from vitdense.registry import build
from vitdense.visualize.predictions import draw, enlarge
from vitdense.visualize.sheets import arrange

SCENES = (2, 9, 11)  # of the 200


def main(model: str = 'work_dirs/shapes/model') -> None:
    predictor = vitdense.load(model)
    scenes = build(load_config('configs/quickstart/shapes.py').val_dataloader.dataset.to_dict())
    images = [scenes[index].img for index in SCENES]
    results = [predictor(image) for image in images]
    tiles = [enlarge(image.permute(1, 2, 0).numpy(), 5) for image in images]
    tiles += [draw(image, result.predictions, result.metainfo) for image, result in zip(images, results, strict=True)]
    sheet = arrange(tiles, columns=len(SCENES))
    Image.fromarray(sheet).save(Path(__file__).with_suffix('.png'), optimize=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
