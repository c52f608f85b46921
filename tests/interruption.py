"""An exception from a signal handler, at an instruction of one's choice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


class TimeLimit(Exception):
    """What a framework raises from its signal handler."""


def interrupted_at(instruction: int, module: ModuleType, act: Callable[[], object]) -> bool:
    """Raise before the nth instruction of the module; False when there are not so many."""
    left = instruction

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left == 0:
                raise TimeLimit
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except TimeLimit:
        return True
    finally:
        sys.settrace(before)
    return False
