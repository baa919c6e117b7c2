"""Hyperparameter search: the study, its trials, its report.

Nothing that a single training needs.
"""
