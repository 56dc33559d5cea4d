"""ComfyUI's log is read in terminals, and it quotes files."""

import pytest
from clora_bare.nodes.log import log


def test_log_records_contain_no_control_characters(caplog: pytest.LogCaptureFixture):
    log.warning("%s cannot be read: %s", "a\x1b[2J", ValueError("\ud800 and 100%"))
    assert caplog.messages == [r"a\u001b[2J cannot be read: \ud800 and 100%"]
