"""What a user sees of an error is one line about its first cause."""

import sys

import pytest
import torch
from conftest import recipe, refused
from monai.utils import optional_import

from scripts.common.errors import InputError, describe, first_cause, print_cause


def raised(*errors: Exception) -> Exception:
    """The last of ``errors``, each raised from the one before it."""
    try:
        if errors[1:]:
            raise errors[-1] from raised(*errors[:-1])
        raise errors[0]
    except Exception as error:
        return error


def test_the_first_cause_is_told() -> None:
    error = raised(InputError("a.json: not JSON\nb.json: not JSON"), RuntimeError("Failed"), ValueError("again"))
    assert isinstance(first_cause(error), InputError)
    assert describe(error) == "a.json: not JSON\nb.json: not JSON"
    assert describe(raised(KeyError("x"), RuntimeError("Failed"))) == "KeyError: 'x'"
    assert describe(ValueError("two\n  lines")) == "ValueError: two lines"


def test_long_messages_are_cut_between_words_and_show_it() -> None:
    assert describe(ValueError("word " * 60)) == "ValueError: " + " ".join(["word"] * 60)
    told = describe(ValueError("word " * 1000))
    assert told.endswith("word …")
    assert len(told) < 650


class Broken(torch.utils.data.Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("/d/x.pt: cannot be written (No space left on device); free some"), None),
        (FileNotFoundError(2, "No such file", "/d/scan.nii.gz"), "FileNotFoundError: [Errno 2] No such file: '/d/sc"),
    ],
)
def test_an_error_in_a_loaders_worker_is_told_by_its_own_line(error: Exception, line: str | None) -> None:
    loader = torch.utils.data.DataLoader(Broken(error), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(type(error)) as caught:
        next(iter(loader))
    assert describe(caught.value).startswith(line or str(error))
    assert len(describe(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"network_def#channel": 3}, "TypeError in scripts.networks.meshnet.MeshNet: MeshNet.__init__() got an unexpe"),
        ({"loss_def#weight": []}, "ValueError in scripts.training.losses.WeightedCrossEntropyLoss: min() "),
        ({"dataset_dir": "/no/such", "network": "@cohort"}, "dataset_dir /no/such: no such folder\n"),
    ],
)
def test_the_hook_prints_the_cause_and_where_in_the_config(
    override: dict, line: str, capsys: pytest.CaptureFixture
) -> None:
    parser = recipe(**override)
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("loss" if "loss_def#weight" in override else "network")
    print_cause(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.endswith(" (--debug true shows the traceback)\n") is ("Error in" in line)
    assert printed.count("\n") == 1


def test_leaving_and_interrupting_are_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "__excepthook__", lambda *error: seen.append(error[0]))
    print_cause(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert seen == [KeyboardInterrupt]


def test_a_password_is_never_shown() -> None:
    error = OSError("could not connect to postgresql://me:secret@host/db, nor to http://host:80/a@b")
    assert describe(error) == "OSError: could not connect to postgresql://me:***@host/db, nor to http://host:80/a@b"
    assert describe(OSError("postgresql+psycopg://u:a/b@h/db")) == "OSError: postgresql+psycopg://u:***@h/db"
    assert describe(OSError("mysql://h/db?password=PW&x=1")) == "OSError: mysql://h/db?password=***&x=1"


def test_a_package_that_is_missing_is_named_with_its_command_and_without_a_traceback() -> None:
    with refused(r"\(No module named 'no_such_package'\)\.; pip install no_such_package$"):
        optional_import("no_such_package")[0].anything  # noqa: B018
    with refused("^OptionalImportError: from no_such_package import x .No module named((?!raceback).)*$"):
        optional_import("no_such_package", name="x")[0]()
