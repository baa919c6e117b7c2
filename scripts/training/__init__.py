"""What a run needs besides MONAI: loss, states, checkpoints, its folder and its log.

Nothing that measures masks or looks for hyperparameters.
"""
