"""The section `generate`: what a trained model generates, and how."""

from typing import Annotated, Literal

from gemini_jax.config import schema

# Separates the texts of a prompt that holds several.
SEPARATOR = '||'


@schema.section('generate')
class Generate:
  """Generation from a trained model."""

  # The text to continue (decoder) or to read (encoder_decoder); `A || B` where
  # `source` needs several texts.
  prompt: str = ''
  # A conversation to answer by the tokenizer's chat template: a JSON file with
  # [{"role": "user", "content": "..."}, ...], of which `prompt`, if it is set,
  # becomes the last message; or 'prompt': that is the only message; '': none.
  chat: str = ''
  # A JSONL file of prompts that are answered in one batch, in the place of
  # `prompt`: each line {"prompt": "..."} or {"messages": [...]}, with
  # "adapter": one of `adapters` where not the run itself shall answer; '': no
  # file.
  prompts: str = ''
  # Runs that were tuned from this one by updates of low rank (folders of runs,
  # or of PEFT). A line of `prompts` names the one that answers it; without
  # `prompts` each of them answers `prompt`.
  adapters: tuple[str, ...] = ()
  # prompt: continue or answer it. Models with a latent also take z from the
  # prior; from the posterior of the prompt; interpolated between two texts
  # (A || B); or by analogy (A || B || C: the output is to C as B is to A).
  source: Literal['prompt', 'prior', 'posterior', 'interpolate', 'analogy'] = (
    'prompt'
  )
  # z itself; overrides `source`.
  latent: tuple[Annotated[float, schema.Range(cap=1_000_000)], ...] = ()
  # Factor of z's standard deviation: 0 takes the mean (reconstruction), larger
  # values give more variety.
  latent_temperature: Annotated[float, schema.Range(0, cap=1000)] = 1.0
  # Attributes to steer towards: 'attribute=value', several with commas. The
  # attributes are those of the labels in data.train.
  steer: str = ''
  # Steering method; see steer/.
  steer_method: Literal[
    'ode', 'gradient', 'vector', 'best_of', 'fudge', 'pplm'
  ] = 'ode'
  # Strength of steering.
  steer_weight: Annotated[float, schema.Range(0, cap=1_000_000)] = 1.0
  # Labelled texts that each attribute's classifier is trained on; at least a
  # quarter of them have the target value, if there are enough.
  num_labels: Annotated[int, schema.Range(2)] = 400
  # Files of media among the inputs; '': none.
  image: str = ''
  audio: str = ''
  video: str = ''
  # What to generate.
  output: Literal['text', 'image', 'audio'] = 'text'
  # Name of the task of data.tasks to perform; '': the only one that takes the
  # given inputs and makes the chosen output.
  task: str = ''
  # Scale of classifier-free guidance of generated media (needs
  # data.inputs_dropout); 0: off.
  guidance: Annotated[float, schema.Range(0, cap=1000)] = 0.0
  # Number of samples, and the most new tokens of each.
  count: schema.Size = 1
  max_tokens: schema.Length = 200
  # Sampling temperature; 0: greedy.
  temperature: schema.NonNegative = 0.8
  # Sample from the k most likely tokens; 0: all.
  top_k: schema.StepsOrZero = 0
  # Sample from the most likely tokens that together have this probability.
  top_p: schema.PositiveShare = 1.0
  # Sample from tokens whose probability is at least this share of the highest.
  min_p: schema.Share = 0.0
  # Number of beams of a beam search; 1: sampling.
  beam_size: Annotated[int, schema.Range(1, cap=2**12)] = 1
  # Exponent of the length normalisation of beams, ((5 + n) / 6) ** this.
  length_penalty: Annotated[float, schema.Range(-5, 5)] = 0.6
  # Folder of a run of the same tokenizer and a small model, which drafts tokens
  # that the large one checks: text of the same distribution in fewer passes
  # (Leviathan et al. 2023); '': none.
  draft: str = ''
  # Tokens that it drafts for each pass.
  draft_tokens: Annotated[int, schema.Range(1, cap=64)] = 4
  # Products on CPUs: by XLA, or for few rows by kernels in C++, which are
  # compiled once; auto: by these if there is a compiler, with weights of floats
  # only in models that are larger than a processor's caches.
  cpu_kernel: Literal['auto', 'xla', 'native'] = 'auto'
  # Seed of sampling and of the choice of labelled texts.
  seed: schema.Seed = 0
  # Which checkpoint: the newest, or that of the lowest validation loss.
  checkpoint: Literal['latest', 'best'] = 'latest'
  # Rows (samples or beams) that are generated together at most; None: as many
  # as fit into the free memory.
  batch_size: schema.Size | None = None
  # Tokens of a prompt that are processed at once.
  prefill_chunk: schema.Length = 64

  def __post_init__(self):
    num = {'interpolate': 2, 'analogy': 3}.get(self.source, 1)
    schema.check(
      len(self.texts) == num,
      f'generate.prompt={self.prompt!r} must be {num} texts with '
      f'{SEPARATOR!r} between them for generate.source={self.source!r}',
    )
    schema.check(
      not self.chat or self.source in ('prompt', 'prior'),
      f'generate.chat={self.chat!r} does not go with generate.source='
      f'{self.source!r}; use prompt or prior',
    )
    schema.check(
      len(set(self.adapters)) == len(self.adapters) and '' not in self.adapters,
      f'generate.adapters={self.adapters!r} must be different folders',
    )
    for name, used in (
      ('steer', bool(self.steer)),
      ('output', self.output != 'text'),
    ):
      for other in ('adapters', 'prompts'):
        schema.check(
          not (getattr(self, other) and used),
          f'generate.{name}={getattr(self, name)!r} does not go with '
          f'generate.{other}={getattr(self, other)!r}, which are for sampled '
          'text alone',
        )
    for name, used in (
      ('steer', bool(self.steer)),
      ('beam_size', self.beam_size > 1),
      ('output', self.output != 'text'),
    ):
      schema.check(
        not (self.draft and used),
        f'generate.{name}={getattr(self, name)!r} does not go with '
        f'generate.draft={self.draft!r}: tokens are drafted for sampled text '
        'alone',
      )

  @property
  def texts(self) -> tuple[str, ...]:
    """The texts of the prompt: one, or several for some sources."""
    if self.source in ('interpolate', 'analogy'):
      return tuple(text.strip() for text in self.prompt.split(SEPARATOR))
    return (self.prompt,)
