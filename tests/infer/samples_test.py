"""Files of samples."""

from gemini_jax.infer import samples


def test_samples_of_an_earlier_call_stay(tmp_path):
  path = tmp_path / 'samples' / '00000100-generate.jsonl'
  sample = samples.Sample('a', 'b', (3,), (-1.0,))
  names = []
  for number in range(3):
    free = samples.claim(path)
    names.append(free.name)
    samples.write_samples(free, [sample] * (number + 1))
  assert names == [
    '00000100-generate.jsonl',
    '00000100-generate-2.jsonl',
    '00000100-generate-3.jsonl',
  ]
  counts = [
    len((path.parent / name).read_text().splitlines()) for name in names
  ]
  assert counts == [1, 2, 3]
