"""Settings of benchmarks: the file that comes with the project, and files with mistakes."""

from pathlib import Path

import pytest

from mixformer_jax.datasets.sequences import READERS
from mixformer_jax.evaluation.trackers import read_benchmark_settings, settings_on
from mixformer_jax.models.config import SIZES, ConfigError

BENCHMARKS = Path(__file__).resolve().parents[2] / "configs" / "benchmarks.toml"


def test_search_factors_of_the_published_runs():
    """The paper's numbers on these benchmarks were measured with them."""
    settings = read_benchmark_settings(BENCHMARKS)

    def factors(model, *benchmarks):
        return [settings[model][name]["search_factor"] for name in benchmarks]

    assert factors("mixvit_b_online", "lasot", "uav123", "otb100") == [5.05, 4.7, 4.45]
    five = ("lasot", "trackingnet", "got10k", "otb100", "uav123")
    assert factors("mixvit_l_online", *five) == [4.55, 4.6, 4.5, 4.6, 4.7]
    assert factors("mixvit_b_convmae_online", *five) == [4.8, 4.5, 4.5, 4.5, 4.5]
    assert factors("mixvit_l_convmae_online", *five) == [4.5, 4.6, 4.5, 4.45, 4.55]
    assert factors("mixcvt_online_1k", *five) == [4.5, 4.5, 4.55, 4.5, 4.55]
    assert settings["mixcvt_online_got"]["got10k"]["max_score_decay"] == 0.98
    assert settings["mixvit_l_online"]["otb100"]["num_online_templates"] == 5


def test_tables_of_weights_that_the_scripts_run_with_another_yaml():
    """The official experiments have no yaml of their own for them."""
    settings = read_benchmark_settings(BENCHMARKS)
    assert settings["mixvit_l_online_got"] == {
        "got10k": {"search_factor": 4.5, "update_interval": 200, "num_online_templates": 2}
    }
    assert settings["mixcvt_online_1k_got"] == {
        "got10k": {"search_factor": 4.55, "update_interval": 10, "num_online_templates": 3}
    }


def test_settings_on_one_benchmark():
    tables = {"a": {"lasot": {"search_factor": 5.0}, "vot": {}}, "b": {"vot": {"search_factor": 4.0}}}
    assert settings_on(tables, "lasot") == {"a": {"search_factor": 5.0}}
    assert settings_on(tables, "vot", "b") == {"a": {}, "b": {"search_factor": 4.0}}
    with pytest.raises(ConfigError, match=r"--settings-of c: not in `mixformer configs show benchmarks.toml`; known"):
        settings_on(tables, "lasot", "c")
    with pytest.raises(
        ConfigError, match=r"--settings-of b: has no lasot in `mixformer configs show benchmarks.toml`, but vot"
    ):
        settings_on(tables, "lasot", "b")


def test_every_table_is_of_a_model_that_there_is():
    names = {name.removesuffix("_got").removesuffix("_1k") for name in read_benchmark_settings(BENCHMARKS)}
    assert names <= set(SIZES) and len(names) == 12


def test_every_benchmark_is_a_known_data_set():
    named = {name for benchmarks in read_benchmark_settings(BENCHMARKS).values() for name in benchmarks}
    assert named == {"got10k", "lasot", "otb100", "trackingnet", "uav123", "vot"}
    assert named <= set(READERS)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lasot = {}\n[mixvit_b", "not TOML"),
        ("mixvit_b = 3", r"\[mixvit_b\] is 3; expected \[MODEL\]"),
        ("[mixvit_b]\nlasot = 5.05", r"\[mixvit_b\] lasot is 5.05; expected"),
        ("[mixvit_b]\nlasot = { search_facter = 5.05 }", r"\[mixvit_b\] lasot: .*did you mean 'search_factor'"),
        ("[mixvit_b]\nlasot = { update_interval = 0 }", r"\[mixvit_b\] lasot: update_interval is 0"),
    ],
)
def test_mistakes_are_named(tmp_path, text, complaint):
    path = tmp_path / "benchmarks.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_benchmark_settings(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.toml: no such file"):
        read_benchmark_settings(tmp_path / "gone.toml")
