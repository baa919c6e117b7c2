"""From scans to masks: finding scans, derivatives, lesions, averaging at test time.

Nothing that needs a true mask.
"""
