"""Weights as one object: their cards, the files they lie in, several of them together, wider ones made of them.

Nothing that trains them or writes masks.
"""
