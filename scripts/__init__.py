"""What MONAI, Ignite and torch lack for this bundle: one concept a file, named by the concept."""
