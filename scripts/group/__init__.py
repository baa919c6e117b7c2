"""After the masks: a dataset as a BIDS App takes it, the table, page, spaces and regions of a cohort.

Nothing that draws a mask.
"""
