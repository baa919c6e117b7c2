"""Fire calls a function before it complains of an unknown flag: this runs it only when every flag was understood."""

from collections.abc import Callable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import fire


def run_command(function: Callable) -> Any:
    """Run ``function`` with the command line's arguments; return what it returns.

    Fire exits with status 2, and nothing done, for a flag that ``function`` does not have.
    """

    @wraps(function)
    def request(*args: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(call=partial(function, *args, **options))

    return fire.Fire(request, serialize=lambda request: None).call()
