"""ConvMAE on ImageNet-1k with the encoder of MixViT-L (ConvMAE) (Gao et al. 2022; the paper, section 3.4).

    mixformer pretrain --config convmae_imagenet_vit_l
    mixformer train --config mixvit_l_convmae --config.train.init=runs/convmae_imagenet_vit_l

As MAE, behind two convolutional stages: the mask is drawn on the coarsest grid and holds for them too, their
convolutions see zeros in hidden cells, and the decoder reads their output beside the encoder's. 800 epochs, batch 4096.
Not run at this size yet.
"""

from ml_collections import ConfigDict
from recipe import IMAGENET_IMAGES, imagenet, mae_schedule

from mixformer_jax.models.config import size_config


def get_config() -> ConfigDict:
    config = ConfigDict()
    model = size_config("mixvit_l_convmae").to_dict() | {"search_size": 224, "dtype": "bfloat16"}
    config.autoencoder = {"model": model}
    config.images = imagenet()
    config.train = mae_schedule(800 * IMAGENET_IMAGES, 4096)
    return config
