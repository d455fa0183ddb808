"""MixFormer's networks: mixed attention, backbones, box heads, and the models built of them."""
