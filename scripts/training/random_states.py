"""Get and set all random states that a run draws from: torch's, CUDA's, NumPy's and Python's."""

import random

import numpy as np
import torch


def random_states() -> dict:
    """Return the states in a form that ``torch.load`` reads with ``weights_only``."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, keys.tolist(), *rest],
        "python": random.getstate(),
    }


def set_random_states(states: dict) -> None:
    """Put back what ``random_states`` returned; CUDA's only on a machine with as many GPUs."""
    torch.set_rng_state(states["torch"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    np.random.set_state(tuple(states["numpy"]))
    random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in states["python"]))
