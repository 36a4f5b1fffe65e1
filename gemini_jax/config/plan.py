"""The section `plan`: the devices that `--mode=plan` compiles for."""

from gemini_jax.config import schema


@schema.section('plan')
class Plan:
  """The devices that `--mode=plan` compiles for."""

  # Target devices, which need not be present: v5p:8x8x8 (chips along each dim
  # of a slice; also v4, v5e, v6e, tpu7x) or h100:2x8 (hosts x GPUs a host; also
  # a100, h100-pcie, h200, b200). '': the devices of this machine.
  topology: str = ''
  # Batch size of the decode step; None: data.batch_size; 0: no decode step.
  decode_batch_size: schema.SizeOrZero | None = None
  # Compile with less optimisation: in a fifth of the time; memory is estimated
  # within 10 %.
  fast: bool = True
  # Memory of a device in bytes; None: that of its kind.
  device_memory_bytes: schema.Count | None = None
