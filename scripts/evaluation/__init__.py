"""What masks are worth: metrics, the table of subjects, the report and its pictures.

Nothing that makes masks.
"""
