"""nanoGPT's training step, timed on request: the peer of commands/bench.py.

Runs as a process of its own, with torch and a nanoGPT checkout; reads a
number of steps a line and answers with the seconds of each.
"""

import json
import sys
import time


def main():
  """Serves timings until the input ends."""
  directory, sizes, compiled = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
  sys.path.insert(0, directory)
  # Both belong to the checkout's own environment.
  import torch
  from model import GPT, GPTConfig  # type: ignore[import-not-found]

  torch.set_num_threads(sizes.pop('threads'))
  batch_size, dtype = sizes.pop('batch_size'), sizes.pop('dtype')
  # On a GPU with what nanoGPT's own train.py sets there.
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.manual_seed(0)
  model = GPT(GPTConfig(dropout=0.0, bias=False, **sizes)).to(device)
  optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
  if compiled == 'compile':
    model = torch.compile(model)
  shape = (batch_size, sizes['block_size'] + 1)
  tokens = torch.randint(sizes['vocab_size'], shape, device=device)
  halves = dtype == 'bfloat16'

  def step():
    with torch.autocast(device, torch.bfloat16, enabled=halves):
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
