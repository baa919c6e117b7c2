"""Simulated cohorts: anatomy, lesions, scanner.

Nothing that reads real cohorts.
"""
