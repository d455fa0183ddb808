"""The sheet of what a pre-trained autoencoder makes of a clip."""

import json

import cv2
import jax
import numpy as np
import pytest

from mixformer_jax.convert.pretrained import save_autoencoder
from mixformer_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.mixformer import init_variables
from pretrain import show

MODEL = {"name": "small", "search_size": 64, "template_size": 32, "width": 32, "depth": 1, "num_heads": 2}
CROPS = {"template_factor": 2.0, "search_factor": 4.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a TrackMAE that has learned nothing."""
    folder = tmp_path_factory.mktemp("run")
    model = MixFormerConfig.from_dict(MODEL)
    config = AutoencoderConfig(model=model, num_templates=2, decoder_depth=1, decoder_width=32, decoder_heads=2)
    save_autoencoder(folder / "model.safetensors", init_variables(Autoencoder(config), jax.random.key(0)), config)
    (folder / "config.json").write_text(json.dumps({"data": {"crops": CROPS}}))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Five frames, a green square that grows on black, absent in the first."""
    folder = tmp_path_factory.mktemp("clip")
    boxes = [[np.nan] * 4]
    cv2.imwrite(str(folder / "00000001.png"), np.zeros((80, 100, 3), np.uint8))
    for number in range(2, 6):
        frame, side = np.zeros((80, 100, 3), np.uint8), 10 + 4 * number
        frame[20 : 20 + side, 30 : 30 + side] = (0, 255, 0)
        cv2.imwrite(str(folder / f"{number:08}.png"), frame)
        boxes.append([30, 20, side, side])
    np.savetxt(folder / "boxes.txt", boxes, delimiter=",")
    return folder


def test_a_sheet_of_a_clip(run, clip, tmp_path):
    sheet = tmp_path / "sheet.png"
    options = ["--video", str(clip), "--boxes", str(clip / "boxes.txt"), "--rows", "3", "--out", str(sheet)]
    assert show.main([str(run), *options]) == 0
    picture = cv2.imread(str(sheet))
    # Two templates, then masked region, reconstruction and original; three rows.
    assert picture.shape[:2] == (18 + 3 * 68, 2 * 36 + 3 * 64 + 2 * 4)
    template = picture[18 : 18 + 32, :32]
    assert (template[12:20, 12:20] == (0, 255, 0)).all() and (template[:4, :4] == 0).all()
    originals = [picture[18 + row * 68 : 82 + row * 68, -64:] for row in range(3)]
    # The crop is four times the target's size, whatever that is.
    for original in originals:
        assert (original[26:38, 26:38] == (0, 255, 0)).all() and (original[:20] == 0).all()
    hidden = (picture[18:82, 72:136] == 128).all(-1).mean()
    assert hidden == pytest.approx(0.75, abs=0.02)


def test_errors_name_what_is_wrong(run, clip, tmp_path, capsys):
    clip_options = ["--video", str(clip), "--boxes", str(clip / "boxes.txt"), "--out", str(tmp_path / "sheet.png")]
    assert show.main([str(run), *clip_options]) == 1
    assert "4 frames with a box; expected more than 6" in capsys.readouterr().err
    np.savetxt(tmp_path / "long.txt", np.tile([30, 20, 20, 20], (9, 1)), delimiter=",")
    options = ["--video", str(clip), "--boxes", str(tmp_path / "long.txt"), "--out", str(tmp_path / "sheet.png")]
    assert show.main([str(run), *options]) == 1
    assert "has no frame" in capsys.readouterr().err
    assert show.main([str(tmp_path / "nowhere"), *clip_options, "--rows", "2"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert show.main([str(run / "model.safetensors"), *clip_options, "--rows", "2"]) == 1
    assert "no config.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        show.main([str(run), "--video", str(clip), "--out", str(tmp_path / "sheet.png")])
