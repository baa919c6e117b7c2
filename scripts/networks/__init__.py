"""MeshNet, how its dilated convolutions are executed, and weights with their cards.

Nothing that knows how they are trained.
"""
