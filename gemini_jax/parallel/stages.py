"""Layers in stages, one stage a device of the pipeline axis.

A batch is cut into microbatches that follow each other through the stages;
what a stage has done goes to the next by one collective permute. With more
than one repeat the schedule is circular (Narayanan et al. 2021, section 2.2):
a stage holds several chunks of layers and a microbatch goes round.

B rows, M microbatches, b = B / M rows of one, S stages, R repeats, C layers
of a chunk, L = R S C layers, I iterations, T length, D width.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import spmd
from jax.sharding import PartitionSpec

from gemini_jax.parallel import pipeline

AXIS = pipeline.AXIS


def run(
  layer: Callable[..., tuple[jax.Array, dict[str, jax.Array], Any]],
  params: Any,
  x_BTD: jax.Array,
  rows: Any,
  shared: Any,
  *,
  schedule: pipeline.Schedule,
  pattern: Sequence[Any],
  scan: bool = True,
  remat: Callable[[Callable], Callable] = lambda function: function,
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
  """All layers, in stages over the pipeline axis of the mesh in use.

  Args:
    layer: `layer(params, x_bTD, rows, shared, index, microbatch, kind)` gives
      the residual stream after a layer, scalars, and a tree of other outputs;
      `index` is the layer's, `kind` its element of `pattern`.
    params: [L, ...], split over the pipeline axis in contiguous parts.
    x_BTD: the residual stream.
    rows: other inputs of the layers, [B, ...] in every leaf.
    shared: inputs that are the same for all microbatches; no gradient goes
      through them.
    schedule: M and R.
    pattern: of the kinds of layers; its length divides C.
    scan: the layers of a chunk; False: unroll them.
    remat: wraps the function of one layer, as jax.checkpoint does.

  Returns:
    The residual stream after all layers; the layers' scalars, summed over the
    layers and averaged over the microbatches; their other outputs, [L, M, ...].
  """
  num_stages = pipeline.num_stages_of(jax.sharding.get_abstract_mesh())
  num, repeats = schedule.count(num_stages), schedule.repeats
  num_layers = jax.tree.leaves(params)[0].shape[0]
  size = num_layers // (num_stages * repeats)
  program = _Program(
    layer, pattern, scan, remat, num_stages, num, repeats, size
  )
  if not schedule.in_stages:
    split = lambda leaf: _split(leaf, num)
    x_MbTD, scalars, outputs = program.run_in_order(
      params, split(x_BTD), jax.tree.map(split, rows), shared
    )
    return join(x_MbTD), jax.tree.map(jnp.mean, scalars), outputs
  assert size * num_stages * repeats == num_layers, 'see pipeline.check'
  assert size % len(pattern) == 0 and (repeats == 1 or num >= num_stages)

  def for_each(leaf):
    # One copy a stage, whose gradients XLA adds up outside of the stages: XLA
    # for CPU cannot compile a sum of bfloat16 that is written inside.
    return jnp.broadcast_to(leaf[None], (num_stages, *leaf.shape))

  names = (None, 'batch', 'length', None)
  x_MbTD = spmd.with_logical_constraint(_split(x_BTD, num), names)
  by_stage, whole = PartitionSpec(AXIS), PartitionSpec()
  x_SMbTD, scalars, outputs = jax.shard_map(
    program.run_stage,
    in_specs=(by_stage, by_stage, by_stage, whole),
    out_specs=(by_stage, by_stage, PartitionSpec(None, AXIS)),
    axis_names={AXIS},
    check_vma=False,
  )(
    params,
    for_each(x_MbTD),
    jax.tree.map(lambda leaf: for_each(_split(leaf, num)), rows),
    shared,
  )
  # All but the first stage give zeros.
  x_MbTD = spmd.with_logical_constraint(jnp.sum(x_SMbTD, axis=0), names)
  # [R, S, C, M, ...] are the layers in order.
  outputs = jax.tree.map(
    lambda leaf: leaf.reshape(num_layers, num, *leaf.shape[4:]), outputs
  )
  return join(x_MbTD), jax.tree.map(jnp.sum, scalars), outputs


def _split(leaf: jax.Array, num: int) -> jax.Array:
  """[B, ...] as [M, b, ...]: each microbatch takes rows of every device."""
  return leaf.reshape(-1, num, *leaf.shape[1:]).swapaxes(0, 1)


def join(leaf: jax.Array) -> jax.Array:
  """[M, b, ...] as [B, ...]: the rows of all microbatches."""
  return leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])


@dataclasses.dataclass(frozen=True)
class _Program:
  """What runs on the devices; the first four fields are those of `run`.

  Attributes:
    layer: of one layer.
    pattern: kinds of layers.
    scan: over the layers of a chunk.
    remat: of one layer.
    num_stages: S.
    num: M.
    repeats: R.
    size: C.
  """

  layer: Callable[..., tuple[jax.Array, dict[str, jax.Array], Any]]
  pattern: Sequence[Any]
  scan: bool
  remat: Callable[[Callable], Callable]
  num_stages: int
  num: int
  repeats: int
  size: int

  def run_in_order(self, params, x_MbTD, rows, shared):
    """The same microbatches through the layers one by one, without stages."""
    num_layers = jax.tree.leaves(params)[0].shape[0]
    stack = lambda *leaves: jnp.stack(leaves)
    parts = []
    for microbatch in range(self.num):
      x_bTD, own_rows = jax.tree.map(
        lambda leaf, microbatch=microbatch: leaf[microbatch], (x_MbTD, rows)
      )
      total, outputs = [], []
      for index in range(num_layers):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], params)
        kind = self.pattern[index % len(self.pattern)]
        x_bTD, scalars, output = self.layer(
          one, x_bTD, own_rows, shared, index, microbatch, kind
        )
        total.append(scalars)
        outputs.append(output)
      total = jax.tree.map(lambda *leaves: sum(leaves), *total)
      parts.append((x_bTD, total, jax.tree.map(stack, *outputs)))
    x_MbTD, scalars, outputs = jax.tree.map(stack, *parts)
    swap = lambda leaf: leaf.swapaxes(0, 1)
    return x_MbTD, scalars, jax.tree.map(swap, outputs)

  def run_layer(
    self, kind, store, sink, slot, x_bTD, rows, shared, index, microbatch
  ):
    """A layer that fetches its parameters: remat need not keep them."""
    params, sink = read(store, sink, slot)
    x_bTD, scalars, output = self.layer(
      params, x_bTD, rows, shared, index, microbatch, kind
    )
    return x_bTD, sink, scalars, output

  def run_chunk(
    self, store, sink, x_bTD, rows, shared, slot, index, microbatch
  ):
    """C layers: from `slot` of the stage's own, from `index` of all."""

    def period(carry, first):
      x_bTD, sink = carry
      total, outputs = [], []
      for i, kind in enumerate(self.pattern):
        x_bTD, sink, scalars, output = self.remat(
          lambda *args, kind=kind: self.run_layer(kind, *args)
        )(
          store,
          sink,
          slot + first + i,
          x_bTD,
          rows,
          shared,
          index + first + i,
          microbatch,
        )
        total.append(scalars)
        outputs.append(output)
      total = jax.tree.map(lambda *parts: sum(parts), *total)
      outputs = jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)
      return (x_bTD, sink), (total, outputs)

    (x_bTD, sink), (scalars, outputs) = jax.lax.scan(
      period,
      (x_bTD, sink),
      jnp.arange(0, self.size, len(self.pattern)),
      unroll=1 if self.scan else self.size // len(self.pattern),
    )
    outputs = jax.tree.map(
      lambda leaf: leaf.reshape(self.size, *leaf.shape[2:]), outputs
    )
    return x_bTD, sink, jax.tree.map(jnp.sum, scalars), outputs

  def run_stage(self, params, x_MbTD, rows, shared):
    """The whole schedule, as one stage sees it."""
    num_stages, num, repeats = self.num_stages, self.num, self.repeats
    stage = jax.lax.axis_index(AXIS)
    x_MbTD, rows = jax.tree.map(lambda leaf: leaf[0], (x_MbTD, rows))
    params, slots = by_repeat(params, stage, num_stages, repeats)
    ring = [(s, (s + 1) % num_stages) for s in range(num_stages)]

    def iteration(carry, number):
      x_bTD, stream_MbTD, params_sink, rows_sink = carry
      # The first stage reads the stream, each other one the stage before it.
      first_bTD, stream_MbTD = read(
        jax.lax.stop_gradient(stream_MbTD), stream_MbTD, number % num
      )
      x_bTD = jnp.where(stage == 0, first_bTD, x_bTD)
      step = number - stage
      busy = (step >= 0) & (step < repeats * num)
      step = jnp.clip(step, 0, repeats * num - 1)
      repeat, microbatch = step // num, step % num
      own_rows, rows_sink = read(
        jax.lax.stop_gradient(rows), rows_sink, microbatch
      )
      x_bTD, params_sink, scalars, outputs = self.run_chunk(
        jax.lax.stop_gradient(params),
        params_sink,
        x_bTD,
        own_rows,
        shared,
        slots[repeat] * self.size,
        (repeat * num_stages + stage) * self.size,
        microbatch,
      )
      x_bTD = jax.lax.ppermute(x_bTD, AXIS, ring)
      # What leaves the last stage has reached the first: it goes round again,
      # or it is done. Before that, nothing has: a slot that nobody reads.
      done = number - (num_stages - 1)
      stream_MbTD = jax.lax.dynamic_update_index_in_dim(
        stream_MbTD, x_bTD, jnp.where(done < 0, num, done % num), 0
      )
      scalars = jax.tree.map(lambda leaf: jnp.where(busy, leaf, 0), scalars)
      carry = (x_bTD, stream_MbTD, params_sink, rows_sink)
      return carry, (scalars, outputs)

    # Idle stages work on the first microbatch: numbers that stay finite.
    stream_MbTD = jnp.concatenate([x_MbTD, x_MbTD[:1]])
    (_, stream_MbTD, _, _), (scalars, outputs) = jax.lax.scan(
      iteration,
      (x_MbTD[0], stream_MbTD, params, rows),
      jnp.arange(repeats * num + num_stages - 1),
    )
    x_MbTD = jnp.where(stage == 0, stream_MbTD[:num], 0)
    total = lambda leaf: jnp.sum(leaf, keepdims=True) / num

    def busy_part(leaf):
      """[I, C, ...] of all iterations as [R, 1, C, M, ...] of the busy ones."""
      leaf = jax.lax.dynamic_slice_in_dim(leaf, stage, repeats * num)
      leaf = leaf.reshape(repeats, num, *leaf.shape[1:])
      return leaf.swapaxes(1, 2)[:, None]

    outputs = jax.tree.map(busy_part, outputs)
    return x_MbTD[None], jax.tree.map(total, scalars), outputs


def by_repeat(
  params: Any, stage: jax.Array, num_stages: int, repeats: int
) -> tuple[Any, jax.Array]:
  """A stage's parameters, fetched from the stages that store them.

  Stage s stores the chunks s R to s R + R - 1 and runs s, s + S, s + 2 S, ...
  In each of R rounds every stage sends one chunk and receives one.

  Args:
    params: [R C, ...], what this stage stores.
    stage: s.
    num_stages: S.
    repeats: R.

  Returns:
    [R C, ...], what it runs, and int[R]: which of these R chunks each repeat
    runs.
  """
  chunks = np.arange(num_stages * repeats)
  rounds = _rounds(num_stages, repeats)
  sent = np.zeros((repeats, num_stages), np.int32)
  sent[rounds, chunks // repeats] = chunks % repeats
  received = np.zeros((num_stages, repeats), np.int32)
  received[chunks % num_stages, chunks // num_stages] = rounds
  if repeats == 1:
    return params, jnp.zeros(1, jnp.int32)

  def fetch(leaf):
    size = leaf.shape[0] // repeats
    parts = []
    for number in range(repeats):
      part = jax.lax.dynamic_slice_in_dim(
        leaf, jnp.asarray(sent[number])[stage] * size, size
      )
      pairs = [
        (int(chunk) // repeats, int(chunk) % num_stages)
        for chunk in chunks[rounds == number]
      ]
      parts.append(jax.lax.ppermute(part, AXIS, pairs))
    return jnp.concatenate(parts)

  return jax.tree.map(fetch, params), jnp.asarray(received)[stage]


def _rounds(num_stages: int, repeats: int) -> np.ndarray:
  """int[S R]: the round in which a chunk is sent.

  R chunks in a row, which one stage stores, get different rounds: they lie
  between two multiples of lcm(S, R). So do R chunks S apart, which one stage
  runs: their remainders by R repeat at every multiple of it, and are then
  shifted by one.
  """
  chunks = np.arange(num_stages * repeats)
  return (chunks + chunks // math.lcm(num_stages, repeats)) % repeats


@jax.custom_vjp
def read(store: Any, sink: Any, index: jax.Array) -> tuple[Any, Any]:
  """Element `index` of every leaf of `store`; and `sink`, which equals it.

  The gradient goes to `sink` alone. Carried through a loop, `sink` is where
  it is added up in place, element by element, and no element of `store` needs
  to be kept for it.
  """
  element = lambda leaf: jax.lax.dynamic_index_in_dim(
    leaf, index, keepdims=False
  )
  return jax.tree.map(element, store), sink


def _read_forward(store, sink, index):
  return read(store, sink, index), index


def _read_backward(index, grads):
  def add(grad, total):
    if grad.dtype == jax.dtypes.float0:
      return total
    old = jax.lax.dynamic_index_in_dim(total, index, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, old + grad, index, 0)

  return None, jax.tree.map(add, *grads), None


read.defvjp(_read_forward, _read_backward)
