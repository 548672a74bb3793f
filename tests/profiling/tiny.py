"""The network that benchmarks measure in tests."""

TINY = [
    "model.configuration=[[3-8],[3-16]]",
    "model.fc_width=32",
    "data.crop_size=32",
    "data.train_scale_min=32",
    "data.train_scale_max=32",
    "precision=fp32",
    "device=cpu",
]
