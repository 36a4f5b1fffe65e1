"""Several tuned runs answer the prompts of one batch: `generate.adapters`."""

import json
import shutil

import numpy as np
import pytest

import tiny
import tuned_runs
from gemini_jax import main
from gemini_jax.commands import convert

TALK = [{'role': 'user', 'content': 'x'}]
OPTIONS = ('generate.temperature=0', 'generate.max_tokens=5')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """With `base`, `a` and `b` tuned from it, `c` from `other`, and for PEFT."""
  folder = tmp_path_factory.mktemp('adapters')
  config = tuned_runs.base_config(folder)
  tuned_runs.save(config, folder / 'base')
  tuned_runs.save(config, folder / 'other', seed=7)
  for name, base, rank in (
    ('a', 'base', 2),
    ('b', 'base', 3),
    ('c', 'other', 2),
  ):
    tuned = tuned_runs.tuned(config, folder / base, method='lora', rank=rank)
    tuned_runs.save(tuned, folder / name, seed=rank)
  for name, target in (('a', 'peft'), ('c', 'peft_of_other')):
    paths = f'--source={folder}/{name}', f'--target={folder}/{target}'
    assert convert.main(['convert', *paths, '--format=peft']) == 0
  return folder


def generate(workdir, *options):
  """The exit code, and what was written."""
  shutil.rmtree(workdir / 'samples', ignore_errors=True)
  options = [f'--config.{option}' for option in (*OPTIONS, *options)]
  code = main.main(
    ['main', f'--workdir={workdir}', '--mode=generate', *options]
  )
  return code, tiny.generated(workdir) if code == 0 else []


def assert_same(sample, other):
  assert sample['tokens'] == other['tokens'] and sample['text'] == other['text']
  np.testing.assert_allclose(sample['logprob'], other['logprob'], atol=1e-4)


def test_a_line_names_the_adapter_that_answers_it(folder, capsys):
  """Each answer is that of the run alone; one of PEFT; and the base's own."""
  lines = [('two', 'a'), ('three', 'b'), ('four', ''), ('two', 'b')]
  lines.append(('two', 'peft'))
  file = folder / 'prompts.jsonl'
  file.write_text(
    '\n\n'.join(
      json.dumps(
        {'prompt': prompt} | ({'adapter': f'{folder}/{name}'} if name else {})
      )
      for prompt, name in lines
    )
  )
  names = tuple(f'{folder}/{name}' for name in ('a', 'b', 'peft'))
  options = f'generate.prompts={file}', f'generate.adapters={names}'
  code, samples = generate(folder / 'base', *options)
  assert code == 0
  shown = capsys.readouterr().out
  assert f'--- 2 of 5, {folder}/b ---\nthree' in shown
  assert '--- 3 of 5 ---\nfour' in shown
  alone = {}
  for sample, (prompt, name) in zip(samples, lines, strict=True):
    assert sample['prompt'] == prompt
    assert sample.get('adapter', '') == (f'{folder}/{name}' if name else '')
    run = {'': 'base', 'peft': 'a'}.get(name, name)
    if (run, prompt) not in alone:
      option = f'generate.prompt={prompt}'
      alone[run, prompt] = generate(folder / run, option)[1][0]
    assert_same(sample, alone[run, prompt])
  assert len({str(sample['tokens']) for sample in samples}) > 2


def test_each_adapter_answers_the_only_prompt(folder):
  """By a beam search: the beams of a prompt have its adapter."""
  names = f'{folder}/b', f'{folder}/a'
  beams = 'generate.prompt=two', 'generate.beam_size=2'
  code, samples = generate(
    folder / 'base', *beams, f'generate.adapters={names}'
  )
  assert code == 0 and [sample['adapter'] for sample in samples] == [*names]
  for name, sample in zip('ba', samples, strict=True):
    assert_same(sample, generate(folder / name, *beams)[1][0])


@pytest.mark.parametrize(
  ('workdir', 'adapters', 'lines', 'message'),
  [
    ('base', ['c'], None, 'the base has other parameters'),
    ('base', ['peft_of_other'], None, 'was tuned from other parameters'),
    ('base', ['other'], None, "tune.method='full' has no updates of low rank"),
    ('base', ['none'], None, 'is no folder of a run or of PEFT'),
    ('a', ['b'], None, 'need their base as --workdir'),
    ('base', ['a', 'a'], None, 'must be different folders'),
    ('base', ['a', 'b'], [{'prompt': 'x', 'adapter': 'a'}], 'which no line of'),
    ('base', [], [{'prompt': 'x', 'adapter': 'a'}], 'none of generate.'),
    ('base', [], [{'text': 'x'}], 'either "prompt" or "messages"'),
    ('base', [], [{'prompt': 7}], 'prompt=7 must be a text'),
    ('base', [], [{'messages': []}], 'not a list of messages'),
    ('base', [], [{'messages': TALK}], 'needs a chat template'),
    ('base', [], [], 'holds no prompt'),
  ],
)  # fmt: skip
def test_what_is_refused(workdir, adapters, lines, message, folder, capsys):
  names = tuple(f'{folder}/{name}' for name in adapters)
  options = [f'generate.adapters={names}']
  if lines is not None:
    file = folder / 'bad.jsonl'
    for line in lines:
      if 'adapter' in line:
        line = line | {'adapter': f'{folder}/{line["adapter"]}'}
      file.write_text(json.dumps(line) + '\n')
    if not lines:
      file.write_text('\n')
    options.append(f'generate.prompts={file}')
  capsys.readouterr()
  assert generate(folder / workdir, *options)[0] == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith('error: ') and message in error
