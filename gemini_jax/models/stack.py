"""Layers in a row over one stored layout: scanned, unrolled or in stages.

B batch, T length, S length of the encoder's output, D width, L layers, P the
period of the attention pattern.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.core
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util

from gemini_jax import config as config_lib
from gemini_jax.layers import attention, hooks, matmul
from gemini_jax.models import transformer
from gemini_jax.parallel import pipeline, stages


@flax.struct.dataclass
class Layers:
  """What differs from layer to layer, [L, ...] in every leaf.

  Attributes:
    params: of the layers.
    index: int32[L].
    edits: of their tensors, nested as the modules are; {}: none.
  """

  params: Any
  index: jax.Array
  edits: Any


class Stack(nn.Module):
  """Layers in a row, their parameters stored as one [L, ...] tree.

  Scanned or unrolled is a choice of the run and changes neither parameters
  nor results; a scan's body is one period of the attention pattern. Where the
  mesh has stages, a batch goes through them as `schedule` says, unless there
  is a cache or the rows do not divide into microbatches.

  Attributes:
    config: of the layers.
    num_layers: L.
    decodes: whether the layers attend to an encoder's output, if there is one.
    schedule: of the stages.
  """

  config: config_lib.Model
  num_layers: int
  decodes: bool = False
  schedule: pipeline.Schedule = pipeline.Schedule()

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    context: transformer.Context,
    cache: transformer.Cache | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, transformer.Cache | None, dict[str, jax.Array]]:
    """The residual stream and the cache after all layers.

    Also the losses of the layers by name, [L].
    """
    config = self.config
    drops = bool(config.dropout or config.stochastic_depth)
    key = None
    if drops and not deterministic:
      key = self.make_rng('dropout')
    block = transformer.Block(
      config, self.decodes, self.num_layers, parent=None
    )
    if self.is_initializing():
      params = self.param('layers', self.init_layers, block, x_BTD, context)
    else:
      params = self.get_variable('params', 'layers')
    captures = dict(self.variables.get('capture', {}))
    layers = Layers(params, jnp.arange(self.num_layers), self.edits())
    apply = functools.partial(apply_layer, block, captures)
    staged = pipeline.splits(self.schedule, x_BTD.shape[0])
    if staged and cache is None and not self.is_initializing():
      x_BTD, outputs = self.run_in_stages(
        apply, captures, x_BTD, layers, context, key
      )
    else:
      x_BTD, cache, outputs = self.run_in_order(
        apply, (x_BTD, cache), layers, context, key
      )
    aux, captured = outputs
    for label, tree in captured.items():
      self.put_variable('captured', label, (tree,))
    return x_BTD, cache, aux

  def edits(self) -> dict[str, Any]:
    """The edits of this stack's tensors that the caller gave, if any."""
    edits: Any = self.variables.get('edit', {})
    edits = flax.core.unfreeze(edits)
    for leaf in jax.tree.leaves(edits):
      if leaf.shape[0] != self.num_layers:
        raise ValueError(
          f'an edit has {leaf.shape[0]} layers, the stack {self.num_layers}'
        )
    return edits

  def run_in_order(
    self,
    apply: Callable[..., Any],
    carry: tuple[jax.Array, transformer.Cache | None],
    layers: Layers,
    context: transformer.Context,
    key: jax.Array | None,
  ) -> tuple[jax.Array, transformer.Cache | None, Any]:
    """Groups of P layers in a scan, if asked for; then the rest one by one.

    Beside residual stream and cache, the other outputs of the layers, [L, ...].
    """
    pattern, scans = self.config.attention_pattern, self.config.scan_layers
    period = len(pattern)
    apply = self.remat(apply, static_argnums=(5,), prevent_cse=not scans)
    whole, sliced = matmul.split_stack(layers.params)
    layers = dataclasses.replace(layers, params=sliced)

    def run(carry, layers, kinds):
      outputs = []
      for layer, kind in zip(unstack(layers, len(kinds)), kinds, strict=True):
        params = matmul.join_layer(whole, layer.params, layer.index)
        layer = dataclasses.replace(layer, params=params)
        *carry, output = apply(*carry, layer, context, key, kind)
        outputs.append(output)
      return tuple(carry), jax.tree.map(lambda *x: jnp.stack(x), *outputs)

    scanned = self.num_layers // period * period if scans else 0
    parts = []
    if scanned:
      groups = jax.tree.map(
        lambda leaf: leaf[:scanned].reshape(-1, period, *leaf.shape[1:]), layers
      )
      carry, part = jax.lax.scan(
        lambda carry, group: run(carry, group, pattern), carry, groups
      )
      parts.append(
        jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), part)
      )
    if scanned < self.num_layers:
      kinds = pattern * (self.num_layers // period + 1)
      carry, part = run(
        carry,
        jax.tree.map(lambda leaf: leaf[scanned:], layers),
        kinds[scanned : self.num_layers],
      )
      parts.append(part)
    outputs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return *carry, outputs

  def run_in_stages(
    self,
    apply: Callable[..., Any],
    captures: dict[str, hooks.Capture],
    x_BTD: jax.Array,
    layers: Layers,
    context: transformer.Context,
    key: jax.Array | None,
  ) -> tuple[jax.Array, Any]:
    """The layers over the pipeline axis of the mesh; outputs as in order.

    Stages give the sum over all layers of each loss; its share is returned for
    every layer, so that their mean, which is all that is used, is right.
    """

    def layer(params, x_BTD, rows, key, index, microbatch, kind):
      if key is not None:
        key = jax.random.fold_in(key, microbatch)
      context, edits = rows
      edits = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 1, False), edits
      )
      layer = Layers(params, index, edits)
      x_BTD, _, (aux, captured) = apply(x_BTD, None, layer, context, key, kind)
      return x_BTD, aux, captured

    def by_row(leaf):
      """[L, B or 1, ...] as [B, L, ...], which microbatches split."""
      shape = (self.num_layers, x_BTD.shape[0], *leaf.shape[2:])
      return jnp.broadcast_to(leaf, shape).swapaxes(0, 1)

    x_BTD, aux, captured = stages.run(
      layer,
      layers.params,
      x_BTD,
      (context, jax.tree.map(by_row, layers.edits)),
      key,
      schedule=self.schedule,
      pattern=self.config.attention_pattern,
      scan=self.config.scan_layers,
      # In a scan over iterations, where nothing is shared by mistake.
      remat=functools.partial(self.remat, prevent_cse=False),
    )
    share = lambda total: jnp.full(self.num_layers, total / self.num_layers)
    joined = {
      label: jax.tree.map(
        functools.partial(jnp.sum, axis=1)
        if captures[label].sums
        else jax.vmap(stages.join),
        tree,
      )
      for label, tree in captured.items()
    }
    return x_BTD, (jax.tree.map(share, aux), joined)

  def remat(
    self, function: Callable[..., Any], **options: Any
  ) -> Callable[..., Any]:
    """The function under jax.checkpoint, if the config asks for it."""
    config = self.config
    if not config.remat:
      return function
    names = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=config.remat_save,
      names_which_can_be_offloaded=config.remat_offload,
      offload_src='device',
      offload_dst='pinned_host',
    )
    return jax.checkpoint(function, policy=names, **options)

  def cross_cache(self, memory_BSD: jax.Array) -> attention.KVCache:
    """Keys and values that all layers make of the encoder's output."""
    params = self.get_variable('params', 'layers')['cross_attention']
    edits = self.edits().get('cross_attention', {})
    fields = transformer.attention_fields(self.config)
    module = attention.MemoryKeys(**fields, parent=None)
    k_LBSKH, v_LBSKH = jax.lax.map(
      lambda layer: module.apply(
        {'params': layer.params, 'edit': layer.edits}, memory_BSD
      ),
      Layers(params, jnp.arange(self.num_layers), edits),
    )
    return attention.KVCache(k_LBSKH.swapaxes(2, 3), v_LBSKH.swapaxes(2, 3))

  def init_layers(
    self,
    key: jax.Array,
    block: transformer.Block,
    x_BTD: jax.Array,
    context: transformer.Context,
  ) -> Any:
    """Parameters of every layer, stacked; boxed with their logical axes."""
    view = next(iter(context.views.values()))
    params = jax.vmap(
      lambda key: block.init(key, x_BTD, view, context)['params']
    )(jax.random.split(key, self.num_layers))
    return jax.tree.map(
      lambda box: box.add_axis(0, {nn.PARTITION_NAME: 'layers'}),
      params,
      is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata),
    )


def apply_layer(
  block: transformer.Block,
  captures: dict[str, hooks.Capture],
  x_BTD: jax.Array,
  cache: transformer.Cache | None,
  layer: Layers,
  context: transformer.Context,
  key: jax.Array | None,
  kind: str,
) -> Any:
  """One layer, given its slice of the stack; random if there is a key.

  Returns:
    The residual stream, the cache, and (losses, what is captured).
  """
  rngs = {}
  if key is not None:
    rngs['dropout'] = jax.random.fold_in(key, layer.index)
  hooked = bool(captures or layer.edits)
  output: Any = block.apply(
    {'params': layer.params, 'edit': layer.edits},
    x_BTD,
    context.views[kind],
    context,
    cache,
    key is None,
    layer.index,
    rngs=rngs,
    mutable=['tensors'] if hooked else False,
  )
  if not hooked:
    x_BTD, cache, aux = output
    return x_BTD, cache, (aux, {})
  (x_BTD, cache, aux), state = output
  tensors = hooks.Tensors(traverse_util.flatten_dict(state['tensors'], sep='/'))
  hooks.check_edits(layer.edits, tensors)
  tensors['real'] = context.real_BT
  captured = {
    label: capture.function(tensors) for label, capture in captures.items()
  }
  return x_BTD, cache, (aux, captured)


def unstack(tree: Any, num: int) -> list[Any]:
  """The slices of a stacked tree. Its gradient is one concatenation."""
  leaves, treedef = jax.tree.flatten(tree)
  slices = [
    [part[0] for part in jax.lax.split(leaf, (1,) * num)] for leaf in leaves
  ]
  return [treedef.unflatten(parts) for parts in zip(*slices, strict=True)]
