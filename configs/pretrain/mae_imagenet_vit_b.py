"""MAE on ImageNet-1k with the encoder of MixViT-B (He et al. 2022; row "MAE Pre-train" of the paper's Table 7).

    mixformer pretrain --config mae_imagenet_vit_b
    mixformer train --config mixvit_b --config.train.init=runs/mae_imagenet_vit_b

800 epochs, batch 4096, 75% of the patches of 224-pixel images hidden, a decoder of 8 blocks: the run of MAE's published
checkpoints. --config.train.init=mae_pretrain_vit_base.pth goes on from one, and pretrain/export.py writes one. The
data: data/imagenet/train and val, or a data set that TensorFlow Datasets prepared (recipe.py).
Not run at this size yet.
"""

from ml_collections import ConfigDict
from recipe import IMAGENET_IMAGES, imagenet, mae_schedule

from mixformer_jax.models.config import size_config


def get_config() -> ConfigDict:
    config = ConfigDict()
    model = size_config("mixvit_b").to_dict() | {"search_size": 224, "drop_path": 0.0, "dtype": "bfloat16"}
    config.autoencoder = {"model": model, "class_token": True}
    config.images = imagenet()
    config.train = mae_schedule(800 * IMAGENET_IMAGES, 4096)
    return config
