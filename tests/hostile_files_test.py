"""Damaged files are read or refused: no crash, no excess of any kind."""

import pytest

import hostile_files


@pytest.mark.parametrize('name', hostile_files.FORMATS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
  counts = hostile_files.run(name, tmp_path, 120)
  refused = sum(n for (_, found), n in counts.items() if found == 'refused')
  # Most damage is seen, and what changes only values is none; little of a
  # configuration is used.
  is_open = name in ('tokenizer_config', 'adapter_config')
  assert refused > (20 if is_open else 60), counts
  assert all(counts[kind, 'refused'] for kind in ('truncated', 'forged'))
