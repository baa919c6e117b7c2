"""Search hyperparameters: what is searched, one trial, the study it belongs to, the loop over trials, its report.

Nothing that a single training needs."""
