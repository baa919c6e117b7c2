"""Weights of a small network with a card, for tests of both."""

import json
from pathlib import Path

import torch

from scripts.networks.meshnet import MeshNet

MESHNET = {"_target_": "scripts.networks.meshnet.MeshNet", "channels": 2}
SCALING = [{"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0}]
CARD = {"network_def": MESHNET, "spacing": [1, 1, 1], "spatial_size": [8, 8, 8], "intensity": SCALING}


def save(folder: Path, card: object = CARD) -> dict:
    """Weights of a MeshNet-2 and their card; the weights."""
    weights = MeshNet(channels=2).state_dict()
    torch.save(weights, folder / "model.pt")
    (folder / "model.json").write_text(json.dumps(card))
    return weights
