"""From scans to masks: finding scans, derivatives, lesions.

Nothing that needs a true mask.
"""
