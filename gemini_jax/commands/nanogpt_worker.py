"""Worker process that times nanoGPT's train step for commands/bench.

Needs torch and a nanoGPT checkout. Reads a number of steps from each line of
its input and answers with the seconds of each step.
"""

import json
import sys
import time


def main():
  """Serves timings until the input ends."""
  directory, sizes, compiled = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
  sys.path.insert(0, directory)
  # From the environment of the checkout.
  import torch
  from model import GPT, GPTConfig  # type: ignore[import-not-found]

  torch.set_num_threads(sizes.pop('threads'))
  batch_size, dtype = sizes.pop('batch_size'), sizes.pop('dtype')
  # On a GPU with the settings of nanoGPT's own train.py.
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.manual_seed(0)
  model = GPT(GPTConfig(dropout=0.0, bias=False, **sizes)).to(device)
  optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
  if compiled == 'compile':
    model = torch.compile(model)
  shape = (batch_size, sizes['block_size'] + 1)
  tokens = torch.randint(sizes['vocab_size'], shape, device=device)
  is_bfloat16 = dtype == 'bfloat16'

  def step():
    with torch.autocast(device, torch.bfloat16, enabled=is_bfloat16):
      _, loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  for line in sys.stdin:
    seconds = []
    for _ in range(int(line)):
      begin = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - begin)
    print('TIMES ' + json.dumps(seconds), flush=True)


if __name__ == '__main__':
  main()
