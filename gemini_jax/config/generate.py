"""What is generated, and how."""

from typing import Annotated, Literal

from gemini_jax.config import schema

# Between several texts of one prompt.
SEPARATOR = '||'


@schema.section('generate')
class Generate:
  """Text from a trained model."""

  # What to continue (decoder), or to read (encoder_decoder); several texts
  # have SEPARATOR between them.
  prompt: str = ''
  # prompt: continue or answer it. Of a model with a latent, also: write from a
  # z of the prior, of the posterior of the prompt, on the way from one text
  # to another (A || B), or by an analogy (B is to A as the output to C, from
  # A || B || C).
  source: Literal['prompt', 'prior', 'posterior', 'interpolate', 'analogy'] = (
    'prompt'
  )
  # z itself, instead of a source.
  latent: tuple[Annotated[float, schema.Range(cap=1_000_000)], ...] = ()
  # What deviations of z are multiplied by; 0 reconstructs, more varies.
  latent_temperature: Annotated[float, schema.Range(0, cap=1000)] = 1.0
  # What the output should be: 'attribute=value', or several with commas. The
  # attributes are those of the labels in data.train.
  steer: str = ''
  # How; see steer/latent_steering.py.
  steer_method: Literal[
    'ode', 'gradient', 'vector', 'best_of', 'fudge', 'pplm'
  ] = 'ode'
  # Strength of it.
  steer_weight: Annotated[float, schema.Range(0, cap=1_000_000)] = 1.0
  # Labelled texts that each attribute is learned from; at least a quarter of
  # them have the target value, if there are so many.
  num_labels: Annotated[int, schema.Range(2)] = 400
  # Files that are read beside the prompt; '': none.
  image: str = ''
  audio: str = ''
  video: str = ''
  # What is written.
  output: Literal['text', 'image', 'audio'] = 'text'
  # The task of data.tasks that is asked for, by its name; '': the only one that
  # reads what is given and writes the output.
  task: str = ''
  # Written media: how much likelier the inputs must make them (classifier-free
  # guidance, data.inputs_dropout); 0: off.
  guidance: Annotated[float, schema.Range(0, cap=1000)] = 0.0
  # Samples of the prompt, and new tokens in each at most.
  count: schema.Size = 1
  max_tokens: schema.Length = 200
  # 0: greedy. Otherwise logits are divided by it.
  temperature: schema.NonNegative = 0.8
  # Keep the k likeliest tokens; 0: all.
  top_k: schema.StepsOrZero = 0
  # Keep the likeliest tokens that together hold this probability.
  top_p: schema.PositiveShare = 1.0
  # Keep tokens at least this likely relative to the likeliest.
  min_p: schema.Share = 0.0
  # Beams of a beam search; 1: sampling.
  beam_size: Annotated[int, schema.Range(1, cap=2**12)] = 1
  # Length normalisation of beams, ((5 + n) / 6) ** length_penalty.
  length_penalty: Annotated[float, schema.Range(-5, 5)] = 0.6
  # Of the samples, and of the choice of labelled texts.
  seed: schema.Seed = 0
  # Which checkpoint: the newest, or the best by validation loss.
  checkpoint: Literal['latest', 'best'] = 'latest'
  # Rows (samples, or beams) that are generated together at most; None: as many
  # as fit into the memory that is free.
  batch_size: schema.Size | None = None
  # Tokens of a prompt that are read at once.
  prefill_chunk: schema.Length = 64

  def __post_init__(self):
    num = {'interpolate': 2, 'analogy': 3}.get(self.source, 1)
    schema.check(
      len(self.texts) == num,
      f'generate.prompt={self.prompt!r} must be {num} texts with '
      f'{SEPARATOR!r} between them for generate.source={self.source!r}',
    )

  @property
  def texts(self) -> tuple[str, ...]:
    """The texts that the prompt is, of which there may be several."""
    if self.source in ('interpolate', 'analogy'):
      return tuple(text.strip() for text in self.prompt.split(SEPARATOR))
    return (self.prompt,)
