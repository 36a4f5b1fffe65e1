r"""Cuts heads, channels and layers out of a run: a plain smaller model.

  python -m gemini_jax.commands.shrink --source=WORKDIR --target=WORKDIR \
      --num_heads=6 --mlp_dim=720 [--importance=taylor]

The target is a workdir of a dense model of the sizes that are given, for
--mode=eval and --mode=generate, for convert, and for a training that recovers
what was lost, as train.init_from. Each layer keeps the units that count most,
all layers equally many.

  --num_heads, --num_kv_heads, --mlp_dim, --num_layers, --num_encoder_layers
                sizes of the target; not given: what is not zero in the source,
                as a run with config.gates leaves it
  --importance  magnitude: by the norms of a unit's weights; taylor: by the
                gradient of the loss on the run's training data
  --batches     of these data
  --checkpoint  latest, or best by validation loss

The target must not exist. Exit codes: 0 done, 2 a mistake in what was asked
for, 130 Ctrl-C.
"""

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax

from gemini_jax import batch as batch_lib
from gemini_jax import command, host
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import convert, convert_sources, program
from gemini_jax.config import growth as growth_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.objectives import losses
from gemini_jax.parallel import sharding
from gemini_jax.train import gradient
from gemini_jax.weights import shrinking, tuning

_SIZES = (
  'num_heads',
  'num_kv_heads',
  'mlp_dim',
  'num_layers',
  'num_encoder_layers',
)
_FLAGS: dict[str, str | None] = {
  'source': None,
  'target': None,
  **dict.fromkeys(_SIZES, ''),
  'importance': 'magnitude',
  'batches': '8',
  'checkpoint': 'latest',
}


def main(argv: Sequence[str]) -> int:
  """Shrinks what the flags name; returns the exit code."""
  work = lambda: shrink(command.parse_flags(argv, _FLAGS))
  return program.main(argv, __doc__, _FLAGS, work)


def shrink(flags: Mapping[str, str]):
  """Shrinks a run; see the module.

  Raises:
    ConfigError: the source cannot be read, the target exists or cannot be
      written, or the sizes are none that the source can be cut to.
  """
  for name, accepted in (
    ('importance', ('magnitude', 'taylor')),
    ('checkpoint', ('latest', 'best')),
  ):
    config_lib.check(
      flags[name] in accepted,
      f'--{name}={flags[name]} must be one of {", ".join(accepted)}',
    )
  sizes = {name: _number(name, flags[name]) for name in _SIZES if flags[name]}
  batches = _number('batches', flags['batches'])
  source = command.folder('source', flags['source'])
  target = command.folder('target', flags['target'])
  config_lib.check(
    (source / 'checkpoints').is_dir(),
    f'--source={source} is no workdir with checkpoints',
  )
  config_lib.check(
    not os.path.lexists(target),
    f'--target={target} exists; give another one, or remove it',
  )
  loaded = convert_sources.merged(
    convert_sources.open_run(source, flags['checkpoint'])
  )
  leaves = jax.tree.leaves(loaded.params, is_leaf=tuning.is_weight)
  config_lib.check(
    not any(map(tuning.is_weight, leaves)),
    f'--source={source} is compressed; shrink what it was made of',
  )
  model = loaded.config.model
  config_lib.check(
    not model.num_experts,
    f'--source={source}: model.num_experts={model.num_experts} has no one '
    'feed-forward layer to cut',
  )
  scores = shrinking.magnitudes(loaded.params, model)
  wanted = shrinking.live_sizes(scores, model)
  if model.kv_heads == model.num_heads and 'num_kv_heads' not in sizes:
    # Every head has keys of its own.
    sizes |= {'num_kv_heads': sizes.get('num_heads', wanted['num_heads'])}
  after = growth_lib.with_sizes(
    model, {k: v for k, v in (wanted | sizes).items() if v}
  )
  shrinking.check(model, after)
  if flags['importance'] == 'taylor':
    scores = taylor(source, loaded, batches)
  params = shrinking.shrink(loaded.params, model, after, scores)
  config = dataclasses.replace(
    loaded.config.of_finished(),
    model=after,
    train=dataclasses.replace(loaded.config.train, init_from=''),
  )
  convert.write(
    convert_sources.Loaded(config, loaded.tokenizer, params), target
  )


def taylor(
  workdir: pathlib.Path, loaded: convert_sources.Loaded, num_batches: int
) -> dict[str, shrinking.Scores]:
  """Importance by the gradient on the first batches of a run's training data.

  Raises:
    ConfigError: the data cannot be read.
  """
  config = dataclasses.replace(
    loaded.config, growth=config_lib.Growth(), tune=config_lib.Tune()
  )
  mesh = run_lib.make_mesh(config)
  run = run_lib.assemble(
    loaded.config, workdir, mesh, run_lib.open_checkpoints(config, workdir)
  )
  config = dataclasses.replace(
    config, optimizer=dataclasses.replace(config.optimizer, frozen='')
  )
  data = run.loader('train')
  products = jax.jit(functools.partial(_products, config, run))
  several = []
  batches = run_lib.device_batches(run, data, loader_lib.iterate(data, 0, 0))
  with sharding.use(mesh):
    for _, batch in zip(range(num_batches), batches, strict=False):
      trees = products(loaded.params, batch)
      several.append(shrinking.first_order(trees, config.model))
  return shrinking.mean(several)


def _products(config, run, params, batch: batch_lib.Batch):
  """Gradients of the mean loss times parameters."""
  grads, sums = gradient.accumulated_gradient(
    config,
    run.model,
    params,
    batch,
    jax.random.key(config.train.seed),
    losses.weights_at(config, config.train.num_steps),
  )
  return jax.tree.map(lambda g, p: g * p / sums.weight, grads, params)


def _number(name: str, value: str) -> int:
  config_lib.check(
    value.isdecimal() and 0 < int(value) < 2**20,
    f'--{name}={value} must be a number above 0',
  )
  return int(value)


def run() -> int:
  """The command as a process: `main` with this process's arguments."""
  host.start_output()
  return main(sys.argv)


if __name__ == '__main__':
  sys.exit(run())
