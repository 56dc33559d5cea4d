"""The logger of the nodes. Its records are shown in terminals and pages."""

import logging

from ..clora_core.texts import printable


def _made_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


log = logging.getLogger("C-LoRA")
log.addFilter(_made_printable)
