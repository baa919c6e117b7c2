"""Techniques that an overlay adds to a training, one a file.

Nothing that a training needs without an overlay.
"""
