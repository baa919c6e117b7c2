"""Where a command's seconds go, and what a scan waits for."""

import time


class Stopwatch:
    """Adds up what each part of a round takes; a round is a scan, and begins with the first lap's name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.rounds, self.last = 0, None

    def start(self) -> None:
        """Begin; laps before it are not counted."""
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What happened since the last lap was ``part``."""
        if self.last is not None:
            now = time.perf_counter()
            self.rounds += part == next(iter(self.seconds), part)
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
            self.last = now

    def report(self) -> str:
        """A line with seconds a round, and of which parts, longest first; empty if there was no round."""
        if not self.rounds:
            return ""
        parts = sorted(self.seconds.items(), key=lambda part: -part[1])
        each = ", ".join(f"{name} {seconds / self.rounds:.2f}" for name, seconds in parts)
        total = sum(self.seconds.values())
        return f"{self.rounds} scan(s) in {total:.1f} s, {total / self.rounds:.2f} s each: {each}"
