"""What every room uses: errors of one line, files that are replaced whole, commands, the check of a config.

Nothing that knows about scans, networks or training.
"""
