"""Measure speed and memory of networks and runtimes; left out of the package.

Nothing that the product imports.
"""
