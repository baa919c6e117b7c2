"""MeshNet and other networks, and how dilated convolutions are executed.

Nothing that knows how they are trained.
"""
