"""MAE's checkpoints: complete, in order, the same bits after a round trip."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.names import carried_by_table
from mixformer_jax.convert.pretrained import (
    autoencoder_to_mae,
    export_to_mae,
    load_autoencoder,
    mae_table,
    save_autoencoder,
    shapes_of_autoencoder,
    start_from_mae,
)
from mixformer_jax.convert.torch_files import write_official_safetensors
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.autoencoder import AutoencoderConfig
from mixformer_jax.models.config import MixFormerConfig, size_config
from tests.convert.layouts import autoencoder_from_mae

CONFIG = AutoencoderConfig(
    MixFormerConfig(name="mae", search_size=64, template_size=32, width=48, depth=2, num_heads=3),
    decoder_depth=1,
    decoder_width=32,
    decoder_heads=4,
    class_token=True,
)


@pytest.fixture(scope="module")
def state(golden):
    arrays = golden("mae.npz")
    return {name.removeprefix("state/"): arrays[name] for name in arrays.files if name.startswith("state/")}


def test_the_table_is_the_official_state_dict(state):
    assert [entry.official for entry in mae_table(CONFIG)] == list(state)
    assert {entry.name for entry in mae_table(CONFIG) if hasattr(entry, "path")} == set(shapes_of_autoencoder(CONFIG))


def test_round_trip_through_a_file(state, tmp_path):
    # Position tables of other machines may differ from ours in the last bit.
    state = state | {"pos_embed": np.nextafter(state["pos_embed"], np.float32(2))}
    variables = autoencoder_from_mae(state, CONFIG)
    save_autoencoder(tmp_path / "mae.safetensors", variables, CONFIG, carried_by_table(state, mae_table(CONFIG)))
    found = load_autoencoder(tmp_path / "mae.safetensors")
    assert found.config == CONFIG
    back = autoencoder_to_mae(found.variables, found.config, found.carried)
    assert list(back) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    made_up = autoencoder_to_mae(found.variables, found.config)
    np.testing.assert_allclose(made_up["pos_embed"], state["pos_embed"], atol=1e-6)


def test_all_that_does_not_fit_is_listed(state):
    wrong = {name: value for name, value in state.items() if name != "norm.bias"}
    wrong |= {"mask_token": np.zeros((1, 1, 16), np.float32), "head.weight": np.zeros((10, 48), np.float32)}
    wrong["pos_embed"] = state["pos_embed"] + 0.1
    with pytest.raises(WeightsError, match="not MAE's state dict for an autoencoder around 'mae'") as caught:
        autoencoder_from_mae(wrong, CONFIG)
    assert set(str(caught.value).split("\n  ")[1:]) == {
        "missing norm.bias (48,)",
        "misshapen mask_token: (1, 1, 16), expected (1, 1, 32)",
        "unexpected head.weight (10, 48)",
        "pos_embed is not the sin-cos table, which MAE never trains",
    }
    variables = autoencoder_from_mae(state, CONFIG)
    del variables["params"]["decoder"]["mask_token"]
    with pytest.raises(WeightsError, match=r"missing params/decoder/mask_token \(32,\)"):
        autoencoder_to_mae(variables, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False}, "MAE has no model without class_token"),
        ({"model": size_config("mixvit_b_convmae")}, "MAE has no patch_embed 'convmae'"),
        ({"model": size_config("mixvit_tiny")}, "no patch_embed 'convolutional', positions 'learnable'"),
    ],
)
def test_what_mae_does_not_have(changes, message):
    with pytest.raises(WeightsError, match=message):
        mae_table(dataclasses.replace(CONFIG, **changes))


def test_start_of_another_objective_and_another_grid(state, tmp_path):
    """Published encoders come without decoder; TrackMAE starts from them at its own sizes."""
    encoder = {name: value for name, value in state.items() if not name.startswith(("decoder", "mask_token"))}
    write_official_safetensors(tmp_path / "mae.safetensors", encoder)
    model = dataclasses.replace(CONFIG.model, search_size=96)
    trackmae = dataclasses.replace(CONFIG, model=model, num_templates=1, class_token=False)
    found = start_from_mae(tmp_path / "mae.safetensors", trackmae)
    shapes = shapes_of_autoencoder(trackmae)
    assert set(found.taken) == {
        name for name in shapes if name.startswith(("params/backbone/", "params/decoder/norm/"))
    }
    assert set(found.fresh) == set(shapes) - set(found.taken)
    assert set(found.ignored) == {"cls_token", "pos_embed"}
    kernel = found.variables["params"]["backbone"]["blocks_1"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, state["blocks.1.mlp.fc1.weight"].T)

    whole = start_from_mae(state, dataclasses.replace(CONFIG, num_templates=2))
    assert not whole.fresh and set(whole.taken) == set(shapes_of_autoencoder(CONFIG))
    assert flatten_dict(whole.variables).keys() == flatten_dict(autoencoder_from_mae(state, CONFIG)).keys()
    learned = state | {"pos_embed": state["pos_embed"] * 2}
    with pytest.raises(WeightsError, match="state dict: pos_embed is not the sin-cos table"):
        start_from_mae(learned, CONFIG)
    with pytest.raises(WeightsError, match=r"missing decoder_pred\.bias"):
        start_from_mae({name: value for name, value in state.items() if name != "decoder_pred.bias"}, CONFIG)


def test_export_as_mae_loads_it(state, tmp_path):
    torch = pytest.importorskip("torch")
    variables = autoencoder_from_mae(state, CONFIG)
    save_autoencoder(tmp_path / "model.safetensors", variables, CONFIG, carried_by_table(state, mae_table(CONFIG)))
    assert export_to_mae(tmp_path / "model.safetensors", tmp_path / "mae.pth") == CONFIG
    found = torch.load(tmp_path / "mae.pth", weights_only=True)["model"]
    assert list(found) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].numpy(), value, err_msg=name)
    export_to_mae(tmp_path / "model.safetensors", tmp_path / "mae.safetensors")
    for name in ("mae.pth", "mae.safetensors"):
        again = start_from_mae(tmp_path / name, CONFIG)
        assert not again.fresh
        for path, value in flatten_dict(again.variables).items():
            np.testing.assert_array_equal(value, flatten_dict(variables)[path])
    with pytest.raises(WeightsError, match=r"expected a name that ends in \.pth or \.safetensors"):
        export_to_mae(tmp_path / "model.safetensors", tmp_path / "mae.npz")
