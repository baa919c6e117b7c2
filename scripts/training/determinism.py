"""Sets what makes a run repeatable, and what makes it fast, before the network is built."""

import monai
import torch


def set_determinism(
    seed: int | None, use_deterministic_algorithms: bool = False, deterministic: bool = True, tf32: bool = True
) -> None:
    """Seed Python, NumPy and torch, and set torch's switches.

    Args:
        seed: of all random states; None leaves them random.
        use_deterministic_algorithms: torch raises an error where an operation has no deterministic form.
        deterministic: cuDNN chooses deterministic convolutions; if not, the fastest by trying.
        tf32: GPUs may multiply float32 in TensorFloat-32.
    """
    monai.utils.set_determinism(seed, use_deterministic_algorithms)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
