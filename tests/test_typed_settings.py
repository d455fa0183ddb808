"""Settings are typed and ranged: every field of every config, in files and on the command line."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from mixformer_jax.cli import main
from mixformer_jax.data.config import DataConfig, DatasetConfig
from mixformer_jax.data.packing import PackConfig
from mixformer_jax.data.single_images import ImagesConfig
from mixformer_jax.models.autoencoder import AutoencoderConfig
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.training.experiment import TrainConfig
from mixformer_jax.typed_settings import (
    ConfigError,
    Count,
    Range,
    Share,
    ShareBelowOne,
    TypedSettings,
    dataclass_from_mapping,
)

RECORDS = [MixFormerConfig, TrackerConfig, AutoencoderConfig, TrainConfig]
RECORDS += [DataConfig, DatasetConfig, ImagesConfig, PackConfig]
TINY = Path(__file__).parents[1] / "configs" / "mixvit_nano.py"


@dataclasses.dataclass(frozen=True)
class Part(TypedSettings):
    share: Share = 0.5


@dataclasses.dataclass(frozen=True)
class Whole(TypedSettings):
    name: str
    steps: Count = 3
    rate: ShareBelowOne | None = None
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    pair: tuple[float, float] = (0.0, 1.0)
    sizes: tuple[Count, ...] = ()
    part: Part = dataclasses.field(default_factory=Part)
    parts: typing.Mapping[str, Part] = dataclasses.field(default_factory=dict)


def test_values_come_as_declared():
    values = {"name": "n", "steps": np.int64(7), "rate": 0, "pair": [1, 2.5], "sizes": [1, 2], "part": {"share": 1}}
    whole = dataclass_from_mapping(Whole, {**values, "parts": {"x": {"share": np.float32(0.25)}}})
    assert whole == Whole("n", 7, 0.0, "a", False, (1.0, 2.5), (1, 2), Part(1.0), {"x": Part(0.25)})
    assert [type(value) for value in (whole.steps, whole.rate, whole.pair[0], whole.part.share)] == [int, *[float] * 3]
    assert type(whole.parts["x"].share) is float


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"steps": 12.0}, r"^run\.steps is 12\.0; expected a whole number, at least 1$"),
        ({"steps": 0}, r"^run\.steps is 0; expected a whole number, at least 1$"),
        ({"steps": True}, r"steps is True"),
        ({"steps": "3"}, r"steps is '3'"),
        ({"steps": None}, r"steps is None"),
        ({"steps": 2**40}, r"steps is 1099511627776; expected a whole number, at least 1, below 2147483648$"),
        ({"rate": 1.0}, r"rate is 1\.0; expected a number, at least 0 and below 1$"),
        ({"rate": math.nan}, r"rate is nan"),
        ({"rate": (0, 5)}, r"rate is \(0, 5\); expected a number"),
        ({"kind": "c"}, r"kind is 'c'; expected one of a, b$"),
        ({"kind": ["a"]}, r"kind is \['a'\]; expected one of a, b$"),
        ({"flag": 1}, r"flag is 1; expected true or false"),
        ({"flag": "no"}, r"flag is 'no'; expected true or false"),
        ({"name": 3}, r"name is 3; expected text"),
        ({"pair": (1.0,)}, r"pair is \(1\.0,\); expected a tuple of 2 values, each a number"),
        ({"pair": 1.0}, r"pair is 1\.0; expected a tuple of 2 values"),
        ({"pair": (1.0, math.inf)}, r"pair\[1\] is inf; expected a number"),
        ({"sizes": "12"}, r"sizes is '12'; expected a tuple of values, each a whole number, at least 1"),
        ({"sizes": (1, 0)}, r"sizes\[1\] is 0"),
        ({"part": 3}, r"run\.part is 3; expected a section with share"),
        ({"part": {"share": 2}}, r"run\.part\.share is 2; expected a number, at least 0 and at most 1"),
        ({"part": {"shaer": 1}}, r"Part has no setting 'shaer' \(did you mean 'share'\?\); it has: share"),
        ({"parts": {"x": {"share": -1}}}, r"run\.parts\.x\.share is -1"),
        ({"parts": {"x": 3}}, r"run\.parts\.x is 3; expected a section with share"),
        ({"parts": ["x"]}, r"run\.parts is \['x'\]; expected a section of sections, each with share"),
        ({3: 4}, r"Whole has no setting 3;"),
    ],
)
def test_what_cannot_be_is_named(values, complaint):
    with pytest.raises(ConfigError, match=complaint):
        dataclass_from_mapping(Whole, {"name": "n", **values}, "run")


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"^run lacks name$"):
        dataclass_from_mapping(Whole, {}, "run")
    with pytest.raises(ConfigError, match=r"^Whole is 'text'; expected a section with name, steps"):
        dataclass_from_mapping(Whole, "text")


def numbers_in(hint):
    """Numeric types and ranges anywhere in a type, with what puts a number in its place."""
    if typing.get_origin(hint) is Annotated or hint in (int, float):
        kind, allowed = typing.get_args(hint) or (hint, Range())
        return [(kind, allowed, lambda value: value)]
    found = []
    for each in typing.get_args(hint):
        for kind, allowed, place in numbers_in(each):
            is_tuple = typing.get_origin(hint) is tuple
            found.append((kind, allowed, (lambda value, p=place: (p(value), p(value))) if is_tuple else place))
    return found


def numeric_fields():
    nested = [*RECORDS]
    for record in nested:
        for name, hint in typing.get_type_hints(record, include_extras=True).items():
            if dataclasses.is_dataclass(hint) and hint not in nested:
                nested.append(hint)
            for kind, allowed, place in numbers_in(hint):
                yield pytest.param(record, name, kind, allowed, place, id=f"{record.__name__}.{name}")


@pytest.mark.parametrize(("record", "name", "kind", "allowed", "place"), list(numeric_fields()))
def test_every_number_of_every_config_has_a_range(record, name, kind, allowed, place):
    assert issubclass(record, TypedSettings)
    least, most = allowed.least, allowed.most
    # A mesh has -1 for "all that are left", and `make_mesh` knows what else cannot be.
    assert math.isfinite(least) or name == "mesh"
    wrong = [math.nan, math.inf, -math.inf, "0.5", True, (0, 5, 7)]
    wrong += [0.5] if kind is int else []
    wrong += [least - 1] if math.isfinite(least) else []
    wrong += [most + 1] if math.isfinite(most) else []
    wrong += [least] * allowed.open_least + [most] * allowed.open_most
    base = {"root": "x"} if record in (DatasetConfig, ImagesConfig, DataConfig) else {}
    base |= {"model": {}} if record is AutoencoderConfig else {}
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^section\.{name}(\[\d\])? is "):
            dataclass_from_mapping(record, {**base, name: place(value)}, "section")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.depth=12.5", "model.depth=12.5: expected int"),
        ("model.layer_scale=no", "model.layer_scale=no: expected bool"),
        ("model.mixed_blocks=two", "model.mixed_blocks is 'two'; expected a whole number, at least 0"),
        ("model.head=square", "model.head is 'square'; expected one of corner"),
        ("train.decay_at=80", "train.decay_at is 80.0; expected a number, at least 0 and at most 1"),
        ("train.clip_norm=0", "train.clip_norm is 0.0; expected a number, above 0"),
        ("train.clip_norm=nan", "train.clip_norm is nan; expected a number, above 0"),
        ("train.learning_rate=-1", "train.learning_rate is -1.0"),
        ("train.mesh=(1,1.5,1)", "train.mesh[1] is 1.5; expected a whole number"),
        ("train.mesh=(3,3,3)", "train.mesh (3, 3, 3) wants 27 devices"),
        ("train.batch_size=7", "train.batch_size 7 does not divide"),
        ("train.warmup_steps=10000", "train.warmup_steps is 10000; expected less than steps"),
        ("train.freeze=backbone", "train.freeze=backbone: expected tuple"),
        ("data.mix.video=-1", "data.mix.video is -1.0; expected a number, at least 0"),
        ("data.positive_share=0,5", "data.positive_share is (0, 5); expected a number, above 0 and below 1"),
        ("data.groups=('a','b')", "data.groups[0] is 'a'; expected a tuple of values, each text"),
        ("data.mix=1", "data.mix is a section"),
        ("tracker.search_factor=nan", "tracker.search_factor is nan; expected a number, at least 1 and at most 32"),
        ("tracker.num_online_templates=1000000", "tracker.num_online_templates is 1000000"),
    ],
)
def test_a_slip_ends_training_in_one_sentence_before_a_folder_is_claimed(tmp_path, capsys, override, complaint):
    more = ["--config.train.mesh=(2,1,1)"] if "batch_size" in override else []
    status = main(["train", "--config", str(TINY), "--out", str(tmp_path / "run"), f"--config.{override}", *more])
    error = capsys.readouterr().err
    assert status not in (0, None) and complaint in error and error.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("'train': {**CONFIG['train'], 'steps': 1e5}", "train.steps is 100000.0; expected a whole number"),
        ("'train': {**CONFIG['train'], 'remat': 'yes'}", "train.remat is 'yes'; expected true or false"),
        ("'train': 3", "train is 3; expected a section with steps, "),
        ("'data': {**CONFIG['data'], 'mix': 0.5}", "data.mix is 0.5; expected a section with video, "),
        ("'data': {**CONFIG['data'], 'crops': 0.5}", "data.crops is 0.5; expected a section with template_size, "),
        ("'data': 'train'", "data is 'train'; expected a section with root, "),
        (
            "'data': {'datasets': {'lasot': 'data/lasot'}}",
            "data.datasets.lasot is 'data/lasot'; expected a section with",
        ),
        ("'data': {'datasets': {'lasot': {'ratio': 1.0}}}", "data.datasets.lasot lacks root"),
        ("'model': {'width': '768'}", "model.width is '768'; expected a whole number"),
    ],
)
def test_files_are_typed_too(tmp_path, capsys, section, complaint):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "from mixformer_jax.config_files import load_config\n"
        f"CONFIG = load_config({str(TINY)!r}).to_dict()\n"
        f"def get_config():\n    return ConfigDict({{**CONFIG, {section}}})\n"
    )
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) not in (0, None)
    error = capsys.readouterr().err
    assert complaint in error and error.count("error:") == 1 and not (tmp_path / "run").exists()


def test_a_section_that_is_none_cannot_be_changed(tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        f"from mixformer_jax.config_files import load_config\nCONFIG = load_config({str(TINY)!r})\n"
        "def get_config():\n    return ConfigDict({**CONFIG.to_dict(), 'tracker': 3})\n"
    )
    assert main(["train", "--config", str(path), "--config.tracker.search_factor=5"]) not in (0, None)
    assert "tracker is 3; expected a section" in capsys.readouterr().err
