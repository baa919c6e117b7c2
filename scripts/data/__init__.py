"""From files to what the network sees: scans and their checks, cohorts, datalists, folds, cache, order.

Nothing that simulates, trains or measures.
"""
