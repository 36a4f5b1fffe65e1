"""What compilers say where they refuse a program."""

import re

# libtpu 0.0.42, arguments included: 'Ran out of memory on HBM, the total memory
# required for HLO temporaries (30.00G) exceeds available HBM (15.75G)'; 'Used
# 20.63G of 15.75G hbm'; 'Requires 3.47E, has 14.49G available'.
_NEEDED = re.compile(
  r'(?:total memory required for HLO temporaries \(|Used |Requires )'
  r'([\d.]+)([KMGTPE]?)(?:\) exceeds available HBM| of [\d.]+\w? hbm|, has )'
)
_SPACE = re.compile(r'memory space (\w+)')
_UNITS = ' KMGTPE'
_LONGEST = 400


class CompilerError(Exception):
  """A compiler refuses a program, for its own reason, told in one line."""


def is_for_memory(message: str) -> bool:
  """Whether a program needs more of a device's memory than there is.

  The small memories that only kernels use are not meant: no smaller batch
  makes room there.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return False
  space = _SPACE.search(message)
  return space is None or space[1] == 'hbm'


def needed(message: str) -> int | None:
  """Bytes that the program would need on a device, where the message says."""
  found = _NEEDED.search(message)
  if found is None:
    return None
  return int(float(found[1]) * 1024 ** _UNITS.index(found[2] or ' '))


def reason(message: str) -> str:
  """The first line that says something."""
  lines = [line.strip() for line in message.splitlines()]
  line = next((line for line in lines if line), 'no reason given')
  return line if len(line) <= _LONGEST else f'{line[: _LONGEST - 3]}...'
