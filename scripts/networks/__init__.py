"""MeshNet, how its dilated convolutions are executed, and weights with their cards, one or several.

Nothing that knows how they are trained.
"""
