"""Let normalizations and biases do without weight decay: groups of parameters for an optimizer."""

from collections.abc import Sequence

from torch.nn import Parameter


def parameter_groups(parameters: Sequence[Parameter], decay_norm_and_bias: bool) -> list:
    """Return all parameters, or a group of kernels and one without decay of vectors, which normalize or are biases."""
    if decay_norm_and_bias:
        return list(parameters)
    vectors = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    return [{"params": [p for p in parameters if p.ndim > 1]}, vectors]
