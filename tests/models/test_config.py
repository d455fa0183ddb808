import jax
import pytest

from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, variable_shapes
from mixformer_jax.models.sizes import SIZES, size_config


def count(name):
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(build_model(size_config(name)))))


def test_parameters_of_the_sizes():
    # The official baseline without the tensors that no forward pass reads: class token, 197-row position table, final
    # norm, 1000-way classifier, and the two sin-cos tables, which are constants here (324 and 64 tokens).
    unused = 768 + 197 * 768 + 2 * 768 + 769 * 1000 + (324 + 64) * 768
    running_statistics = 4830 - 22  # the official buffers without the batch counters of 22 norms
    assert count("mixvit_b") == 98_403_894 - unused + running_statistics
    assert count("mixvit_tiny") <= 6_000_000


def test_sizes_follow_table_2():
    rows = {"mixvit_b": (12, 768, 288, 128), "mixvit_l": (24, 1024, 384, 192)}
    for name, row in rows.items():
        size = SIZES[name]
        assert (size.depth, size.width, size.search_size, size.template_size) == row
    with pytest.raises(ConfigError, match="mixvit_b, mixvit_l, mixvit_tiny"):
        size_config("mixvit_xxl")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wdith": 3}, "did you mean 'width'"),
        ({"search_size": 100}, "multiple of patch_size"),
        ({"num_heads": 5}, "does not divide"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"head": "query3"}, "corner, corner_pyramid"),
        ({"dtype": "float64"}, "float32, bfloat16"),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(ConfigError, match=message):
        MixFormerConfig.from_dict(values)


def test_tracker_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="search_factor is 0"):
        TrackerConfig(search_factor=0.0)
    with pytest.raises(ConfigError, match="num_online_templates"):
        TrackerConfig(num_online_templates=-1)
