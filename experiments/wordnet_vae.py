r"""A VAE of WordNet's definitions, a language model, and a judge.

  apt install wordnet-base
  for latent in cyclical constant none; do
    python -m gemini_jax.main --workdir=runs/wordnet_$latent \
        --config=experiments/wordnet_vae.py:latent=$latent,half=1
  done
  python -m gemini_jax.main --workdir=runs/wordnet_judge \
      --config=experiments/wordnet_vae.py:latent=none,half=2 \
      --config.train.seed=1

`latent` is as in text_vae. Without `half`, nine of ten definitions are for
training; `half=1` takes the even ones, `half=2`, for a judge, the odd ones. The
remaining tenth is in neither: half of it gives `validation/...`, half
`test/...`.
"""

from experiments import base, text_vae

# Indices of 9 modulo 10 are for evaluation.
HALVES = {
  '': ('[!9::10]',),
  '1': ('[::2]',),
  '2': ('[1::10]', '[3::10]', '[5::10]', '[7::10]'),
}


def get_config(arg=''):
  """The config; `arg` is `latent=NAME,half=1|2`."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  latent, half = options.pop('latent', 'cyclical'), options.pop('half', '')
  if latent not in text_vae.LATENTS or half not in HALVES or options:
    raise ValueError(
      f'--config=...:{arg} must be latent=NAME or latent=NAME,half=1|2 with '
      f'NAME one of {", ".join(text_vae.LATENTS)}'
    )
  config = base.get_config()
  text_vae.set_data(config, 'wordnet:')
  config.data.train = tuple(f'wordnet:#{part}' for part in HALVES[half])
  text_vae.set_latent(config, latent)
  if latent != 'none':
    config.model.latent.dim = 32
    config.train.kl_annealing.free_bits *= 0.5
  config.data.sequence_length = 32
  config.model.max_length = 32
  config.model.width = 256
  config.model.mlp_dim = 512
  config.train.num_steps = 800
  config.train.eval_every = 400
  config.train.save_every = 400
  config.evaluate.likelihood.importance_samples = 50
  config.generate.max_tokens = 32
  return config
