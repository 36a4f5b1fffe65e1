"""Whether AdaLoRA finds where ranks are of use: a table.

  PYTHONPATH=. python -P tests/planted_rank_study.py

A frozen network of six layers learns a target that has rank 4 more in layer 1
and rank 8 more in layer 4: 12 ranks in all, which are 2 a layer.
"""

import time

import planted_rank

ROWS = (
  ('LoRA, rank 2 (12 in all)', {'method': 'lora', 'rank': 2}),
  ('LoRA, rank 4 (24)', {'method': 'lora', 'rank': 4}),
  ('LoRA, rank 8 (48)', {'method': 'lora', 'rank': 8}),
  (
    'AdaLoRA, 8 to 2 (12)',
    {'method': 'adalora', 'rank': 2, 'initial_rank': 8},
  ),
  (
    'AdaLoRA, 4 to 2 (12)',
    {'method': 'adalora', 'rank': 2, 'initial_rank': 4},
  ),
  (
    'AdaLoRA, 8, nothing cut (48)',
    {'method': 'adalora', 'rank': 2, 'initial_rank': 8, 'cuts': False},
  ),
)

for name, fields in ROWS:
  for seed in range(3):
    begin = time.perf_counter()
    error, ranks = planted_rank.tuned(seed=seed, **fields)
    seconds = time.perf_counter() - begin
    print(
      f'{name:28} seed {seed}  error {error:.5f}  {ranks}  {seconds:.1f} s',
      flush=True,
    )
