"""Thousands of damaged files of each format, in a process with limits.

    python tests/hostile_files_study.py [cases of a format] [seed]

A table of how many were read and how many refused with ConfigError. A case
that raises anything else, takes more than 2 s or 96 MiB, or ends the process is
told by its number and seed, and the exit status is 1. The process may have
1.5 GiB of addresses more than it has when it begins.
"""

import faulthandler
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile

TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

# Other platforms need more addresses than a process may have here.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
import hostile_files  # noqa: E402


def limited(name, count, seed, results):
  faulthandler.enable()
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * resource.getpagesize() + (3 << 29)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  with tempfile.TemporaryDirectory() as folder:
    counts = hostile_files.run(
      name, pathlib.Path(folder), count, seed, results.send
    )
  results.send(counts)


def study(name, count, seed):
  """How often what happened; None if a case failed."""
  ours, theirs = multiprocessing.Pipe(duplex=False)
  process = multiprocessing.get_context('fork').Process(
    target=limited, args=(name, count, seed, theirs)
  )
  process.start()
  theirs.close()
  last = None
  while True:
    if not ours.poll(30):
      process.kill()
      print(f'{name}: case {last} of seed {seed} does not end')
      return None
    try:
      last = ours.recv()
    except EOFError:
      process.join()
      print(
        f'{name}: case {last} of seed {seed} ended the process '
        f'({process.exitcode})'
      )
      return None
    if not isinstance(last, int):
      process.join()
      return last


def main():
  count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
  seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
  print(f'{"format":<24}{"damage":<14}{"read":>8}{"refused":>10}')
  failed = False
  for name in sys.argv[3:] or hostile_files.FORMATS:
    counts = study(name, count, seed)
    if counts is None:
      failed = True
      continue
    for kind in sorted({kind for kind, _ in counts}):
      print(
        f'{name:<24}{kind:<14}{counts[kind, "loaded"]:>8}'
        f'{counts[kind, "refused"]:>10}'
      )
  sys.exit(failed)


if __name__ == '__main__':
  main()
