"""ComfyUI's log is read in terminals, and what files say stands in it."""

import pytest
from clora_bare.nodes.log import log


def test_nothing_in_the_log_is_obeyed_and_all_of_it_can_be_written(caplog: pytest.LogCaptureFixture):
    log.warning("%s cannot be read: %s", "a\x1b[2J", ValueError("\ud800 and 100%"))
    assert caplog.messages == [r"a\u001b[2J cannot be read: \ud800 and 100%"]
