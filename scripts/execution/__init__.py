"""How a network is computed: precision, the head's box in air, runtimes, several predictions of one scan.

Nothing that says what a network is or which weights it has.
"""
