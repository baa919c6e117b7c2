"""The old name of ``scripts/import_weights.py``."""

raise SystemExit("scripts/import_brainchop.py is scripts/import_weights.py now, and --model_json is --path")
