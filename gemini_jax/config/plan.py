"""What `--mode=plan` compiles for."""

from gemini_jax.config import schema


@schema.section('plan')
class Plan:
  """What `--mode=plan` compiles for."""

  # Devices that need not be here: v5p:8x8x8 (also v4, v5e, v6e, tpu7x; chips
  # along each dim of a slice) or h100:2x8 (also a100, h100-pcie, h200, b200;
  # hosts x GPUs of each). '': the devices of this machine.
  topology: str = ''
  # Rows that are decoded together; None: data.batch_size; 0: no decode step.
  decode_batch_size: schema.SizeOrZero | None = None
  # Compile fast instead of well: in a fifth of the time, memory within 10 %.
  fast: bool = True
  # Bytes that a device has; None: what its kind has.
  device_memory_bytes: schema.Count | None = None
