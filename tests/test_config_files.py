"""Config files are run, overrides are typed, and whatever is wrong is named."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mixformer_jax.config_files import default_settings, flatten, load_config, project_configs
from mixformer_jax.models.config import ConfigError

TEXT = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.train = {"steps": 100, "rate": 1e-3, "flip": True, "name": "a", "ends": (1, 2), "init": None}
    config.data = {"mix": {"video": 0.5}}
    return config
"""


@dataclasses.dataclass(frozen=True)
class Mix:
    video: float = 0.1
    still: float = 0.2


@dataclasses.dataclass(frozen=True)
class Data:
    root: str
    mix: Mix = Mix()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(TEXT)
    return path


def test_without_overrides(path):
    config = load_config(path)
    assert isinstance(config, ConfigDict)
    assert config.train.steps == 100 and config.data.mix.video == 0.5


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=7", 7),
        ("train.steps=1_000", 1000),
        ("train.rate=2", 2.0),
        ("train.rate=5e-4", 5e-4),
        ("train.flip=false", False),
        ("train.flip=True", True),
        ("train.name=b=c, d", "b=c, d"),
        ("train.name=", ""),
        ("train.ends=(3, 4, 5)", (3, 4, 5)),
        ("train.ends=[3]", (3,)),
        ("train.init=runs/x", "runs/x"),
        ("train.init=4", 4),
        ("data.mix.video=1.0", 1.0),
    ],
)
def test_override_takes_the_type_of_what_it_replaces(path, override, value):
    changed = flatten(load_config(path, [f"--config.{override}"]).to_dict())
    name = override.partition("=")[0]
    assert changed[name] == value and type(changed[name]) is type(value)
    before = flatten(load_config(path).to_dict())
    assert {k: v for k, v in changed.items() if k != name} == {k: v for k, v in before.items() if k != name}


def test_last_override_wins(path):
    assert load_config(path, ["--config.train.steps=1", "--config.train.steps=2"]).train.steps == 2


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("--config.train.stpes=1", r"no such setting; did you mean train\.steps"),
        ("--config.steps=1", r"did you mean train\.steps"),
        ("--config.nothing.alike=1", r"known settings: data\.mix\.video, train\.ends"),
        ("--config.train=1", r"is a section.*train\.steps"),
        ("--config.data.mix=1", r"is a section.*data\.mix\.video"),
        ("--config.train.steps=1.5", r"train\.steps=1\.5: expected int.*100"),
        ("--config.train.rate=fast", "expected float"),
        ("--config.train.flip=1", "expected bool"),
        ("--config.train.ends=3", "expected tuple"),
        ("--config.train.ends=(3", "expected tuple"),
        ("--config.train.steps", "with an equals sign"),
        ("--config.=3", "with an equals sign"),
        ("--train.steps=3", "with an equals sign"),
    ],
)
def test_wrong_overrides(path, override, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_config(path, [override])


def test_settings_that_the_file_leaves_out(path):
    defaults = {f"data.{name}": value for name, value in default_settings(Data).items()}
    assert defaults == {"data.root": None, "data.mix.video": 0.1, "data.mix.still": 0.2}
    config = load_config(path, ["--config.data.mix.still=3", "--config.data.root=x"], defaults)
    assert config.data.to_dict() == {"mix": {"video": 0.5, "still": 3.0}, "root": "x"}
    assert "root" not in load_config(path, (), defaults).data, "only what is asked for is added"


def test_a_setting_goes_back_to_none(path):
    path.write_text(path.read_text().replace('"init": None', '"init": "weights.pth"'))
    assert load_config(path, ["--config.train.init=None"], {"train.init": None}).train.init is None
    assert load_config(path, ["--config.train.name=None"]).train.name == "None"


def test_a_locked_config_takes_overrides(path):
    path.write_text(path.read_text().replace("return config", "return config.lock()"))
    assert load_config(path, ["--config.train.keep_every=3"], {"train.keep_every": 0}).train.keep_every == 3


def test_file_may_import_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_a_config.py").write_text("STEPS = 3")
    (tmp_path / "big.py").write_text(
        "from ml_collections import ConfigDict\nfrom neighbour_of_a_config import STEPS\n"
        "def get_config():\n    return ConfigDict({'train': {'steps': STEPS}})\n"
    )
    assert load_config(tmp_path / "big.py").train.steps == 3


def test_neighbours_of_one_name_are_not_mixed_up(tmp_path):
    for steps, name in ((1, "a"), (2, "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared_part.py").write_text(f"STEPS = {steps}")
        (tmp_path / name / "big.py").write_text(
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    from shared_part import STEPS\n    return ConfigDict({'train': {'steps': STEPS}})\n"
        )
    before = list(sys.path)
    assert [load_config(tmp_path / name / "big.py").train.steps for name in "aba"] == [1, 2, 1]
    (tmp_path / "link.py").symlink_to(tmp_path / "b" / "big.py")
    assert load_config(tmp_path / "link.py").train.steps == 2
    assert sys.path == before and "shared_part" not in sys.modules


@pytest.mark.parametrize("name", ["mixvit_tiny_score.py", "mixvit_b_score.py", "pretrain/trackmae_tiny.py"])
def test_a_copied_config_finds_what_it_imports(tmp_path, monkeypatch, name):
    original = Path(__file__).parents[1] / "configs" / name
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copy(original, tmp_path / "elsewhere" / "my_own.py"))
    monkeypatch.chdir(tmp_path)
    assert load_config(copy.relative_to(tmp_path)).to_dict() == load_config(original).to_dict()
    # What lies beside the copy goes first.
    (tmp_path / "elsewhere" / "paper.py").write_text("def score_stage(*names, **settings): raise NameError('mine')")
    if name == "mixvit_b_score.py":
        with pytest.raises(ConfigError, match="NameError: mine"):
            load_config(copy)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, r"no such config file.*mixformer configs"),
        ("x = 1", r"defines no get_config"),
        ("def get_config():\n    return {}", r"returned dict; expected an ml_collections"),
        ("def get_config(:", "does not run: SyntaxError"),
        ("def get_config():\n    return 1 / 0", r"wrong.py, line 2: does not run: ZeroDivisionError"),
        ("def get_config(size):\n    return size", r"does not run: TypeError: .*'size'"),
        (f"{TEXT[:-18]}    config.train.steps = '5'\n    return config", r"wrong.py, line 8: .*field 'steps'"),
        (f"{TEXT[:-18]}    config.trian.steps = 5\n    return config", r"wrong.py, line 8: .*trian"),
        ("import no_such_module_at_all", r"does not run: ModuleNotFoundError.*looked in .*configs"),
    ],
)
def test_wrong_files(tmp_path, text, complaint):
    if text is not None:
        (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(tmp_path / "wrong.py")
    assert "wrong.py" in str(caught.value)


def test_configs_of_the_project_load():
    from mixformer_jax.training.experiment import Experiment

    configs = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
    for path in (path for path in configs if path.stem != "paper"):  # what the others share
        config = load_config(path, ["--config.train.seed=5", "--config.train.steps=900"], default_settings(Experiment))
        experiment = Experiment.from_mapping(config.to_dict())
        assert (experiment.train.seed, experiment.train.steps) == (5, 900)


def test_configs_of_masks_load():
    from mixformer_jax.training.masks import MaskExperiment, mask_objective

    for name, crop_size in (("alpha_refine", 384), ("alpha_refine_tiny", 128), ("mixvit_tiny_masks", 192)):
        config = load_config(name, ["--config.data.min_pixels=5"], default_settings(MaskExperiment))
        experiment = MaskExperiment.from_mapping(config.to_dict())
        assert (mask_objective(experiment).crop_size, experiment.data.min_pixels) == (crop_size, 5)


def test_configs_of_the_project_have_names():
    names = project_configs()
    assert {"mixvit_tiny", "mixcvt_l_score", "trackmae_tiny"} <= set(names) and not {"paper", "recipe", "tiny"} & set(
        names
    )
    assert load_config("mixvit_b").to_dict() == load_config(names["mixvit_b"]).to_dict()
    with pytest.raises(ConfigError, match=r"mixvit_bb: no such config; did you mean mixvit_b or .*`mixformer configs`"):
        load_config("mixvit_bb")
