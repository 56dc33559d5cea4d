"""Ctrl-C at a chosen moment of a command."""

import signal

import pytest

from clora_core.commands.progress import Bar


def press_ctrl_c_in_bar(patch: pytest.MonkeyPatch, number: int) -> None:
    """Press it whenever the reading bar of this number, from 1, moves; the second press would stop at once."""
    read, bars = Bar.of, []

    def interrupted(self: Bar, done: int, of: int) -> None:
        bars.extend([self] if done == 1 else [])
        if len(bars) == number:
            signal.raise_signal(signal.SIGINT)
        read(self, done, of)

    patch.setattr(Bar, "of", interrupted)
