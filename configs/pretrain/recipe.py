"""What the pre-trainings share: MAE's recipe, and the tracking data of the paper (section 4.1)."""

from typing import Any

# He et al. 2022, appendix A.1: a base rate for 256 images, linear in the batch; 5% of the run to warm up.
BASE_RATE = 1.5e-4
WARMUP = 0.05
IMAGENET_IMAGES = 1_281_167

DISTURBANCES = (
    *("aspect", "brightness", "contrast", "gamma", "colour", "saturation", "grey_probability", "blur_probability"),
    *("motion_blur_probability", "coarse_probability", "noise_probability", "occluder_probability"),
)


def mae_schedule(samples: float, batch_size: int) -> dict[str, Any]:
    """The section `train`: MAE's optimizer for so many samples in batches of this size."""
    steps = round(samples / batch_size)
    return {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": BASE_RATE * batch_size / 256,
        "weight_decay": 0.05,
        "beta2": 0.95,
        "schedule": "cosine",
        "warmup_steps": round(WARMUP * steps),
        "clip_norm": 1e6,  # MAE clips nothing
        "validate_every": max(1, steps // 50),
        "checkpoint_every": max(1, steps // 100),
        "workers": 16,
    }


# With templates many more tokens pass than a mask leaves of a single image. What dense layers give is kept, all else is
# computed again: 23 GB of temporary memory for 256 samples of ViT-B, in place of 34 (docs/scaling.md).
KEPT = {"remat": True, "remat_policy": "dots_with_no_batch_dims_saveable"}


def tracking_data(search_factor: float) -> dict[str, Any]:
    """The section `data`: the official trainer's data sets, each as often as the other, and its crops."""
    return {
        "datasets": {
            "got10k": {"root": "data/got10k", "split": "vottrain"},
            "lasot": {"root": "data/lasot", "split": "train"},
            "coco": {"root": "data/coco", "split": "train2017"},
            "trackingnet": {"root": "data/trackingnet"},
        },
        "validation": {"got10k": {"root": "data/got10k", "split": "votval"}},
        "max_interval": 200,
        "crops": {
            "template_factor": 2.0,
            "search_factor": search_factor,
            "scale_jitter": 0.5,
            "centre_jitter": 4.5,
        },
        # MAE leaves colours alone: mirrored crops are all there is.
        "augment": {"flip_probability": 0.5} | dict.fromkeys(DISTURBANCES, 0.0),
    }


def imagenet() -> dict[str, Any]:
    """The section `images`: folders train and val of ImageNet-1k.

    A data set that TensorFlow Datasets prepared takes their place with
    --config.images.root=tensorflow_datasets/imagenet2012/5.1.0 --config.images.validation_root=None
    --config.images.validation_split=validation
    """
    return {"root": "data/imagenet/train", "validation_root": "data/imagenet/val", "validation_split": None}
