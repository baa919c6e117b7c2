"""After the mask: spaces, regions, table and page of a cohort.

What is measured on one scan lies in ``inference``; nothing here computes a mask.
"""
