"""Leaving the bundle: exports of the network and the Model Zoo package.

Nothing that training or inference needs.
"""
