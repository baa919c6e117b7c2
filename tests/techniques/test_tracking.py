"""MLflow gets the settings that a person gave, not how others follow from them."""

from scripts.techniques.tracking import plain_settings


def test_settings_are_numbers_and_words_that_are_not_computed() -> None:
    plain = {"epochs": 3, "amp": True, "learning_rate": 0.1, "loss_name": "dice"}
    others = {"fold": "@other", "cache": "$1 + 1", "quoted": "%run", "loss_def": {"_target_": "a"}, "betas": [0, 1]}
    assert plain_settings({**plain, **others}) == plain
