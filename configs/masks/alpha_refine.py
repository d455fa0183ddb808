"""Alpha-Refine's mask network in its published configuration, as far as its training is known.

    mixformer train --config alpha_refine --config.train.init=resnet50.safetensors

30.2 M parameters, crops of 384 pixels. The script that trained the published network is not public. This is a later one
of the same authors' line, which says that it is a copy of it: 80 epochs of 512,000 pairs, Adam at 1e-3 for all
parameters, halved every 15 epochs, binary cross entropy. Its batch is 32 a GPU on an unknown number of GPUs: 256 here.
It mixes YouTube-VOS, saliency data, COCO 2017 and GOT-10k alike; read here are folders of photographs with masks, and
videos in the layout of YouTube-VOS and DAVIS. `init` is torchvision's ResNet-50 of ImageNet; without it the network
starts at random. Not run here: it needs several GPUs for days.
"""

from ml_collections import ConfigDict

PAIRS = 512_000 * 80
BATCH = 256


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.alpha_refine = {"name": "alpha_refine"}
    config.data = {"root": "data/photographs_with_masks", "videos": "data/youtube_vos/train"}
    config.train = {
        "steps": PAIRS // BATCH,
        "batch_size": BATCH,
        "learning_rate": 1e-3,
        "schedule": "halving",
        "halve_every": 15 / 80,
        "weight_decay": 0.0,
        "clip_norm": 1e9,  # none
        "validate_every": 10_000,  # 5 epochs
        "checkpoint_every": 2000,
        "workers": 16,
    }
    return config
