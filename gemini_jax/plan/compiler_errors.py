"""Error messages of compilers that refuse a program."""

import re

# Messages of libtpu 0.0.42, arguments included: 'Ran out of memory on HBM, the
# total memory required for HLO temporaries (30.00G) exceeds available HBM
# (15.75G)'; 'Used 20.63G of 15.75G hbm'; 'Requires 3.47E, has 14.49G
# available'.
_NEEDED = re.compile(
  r'(?:total memory required for HLO temporaries \(|Used |Requires )'
  r'([\d.]+)([KMGTPE]?)(?:\) exceeds available HBM| of [\d.]+\w? hbm|, has )'
)
_SPACE = re.compile(r'memory space (\w+)')
_UNITS = ' KMGTPE'
_LONGEST = 400


class CompilerError(Exception):
  """A compiler refuses a program, not for lack of memory; one line."""


def is_for_memory(message: str) -> bool:
  """Whether the message says that device memory (HBM) is exhausted.

  It is false for the small memories that only kernels use, where no smaller
  batch would help.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return False
  space = _SPACE.search(message)
  return space is None or space[1] == 'hbm'


def needed(message: str) -> int | None:
  """Bytes that the program needs on a device; None if the message is silent."""
  match = _NEEDED.search(message)
  if match is None:
    return None
  return int(float(match[1]) * 1024 ** _UNITS.index(match[2] or ' '))


def reason(message: str) -> str:
  """The first line that is not empty, shortened."""
  lines = [line.strip() for line in message.splitlines()]
  line = next((line for line in lines if line), 'no reason given')
  return line if len(line) <= _LONGEST else f'{line[: _LONGEST - 3]}...'
