"""Compare networks by the paper's protocol: folds x restarts trained and evaluated, statistics, tables, pictures.

Nothing that trains or measures a single run."""
