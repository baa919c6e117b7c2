"""A page that segments in a browser: inference as ONNX graphs, the page's own files, and the folder made of them.

What inference does is decided in ``inference``; nothing here trains, measures or writes into a dataset.
"""
