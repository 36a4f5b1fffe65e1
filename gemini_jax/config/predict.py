"""The section `predict`: what `--mode=predict` reads and writes."""

from gemini_jax.config import schema


@schema.section('predict')
class Predict:
  """Predictions of a trained model for records that nobody has labelled."""

  # FILE.jsonl, FILE.csv or FILE.tsv, with the fields that the task reads; or a
  # folder of pictures, sounds or videos, for a task that reads one of them.
  source: str = ''
  # FILE.jsonl: a line for each record, in their order.
  output: str = ''
  # The task of data.tasks, by its name; '': the only one.
  task: str = ''
  # Classes whose probabilities are written, the likeliest first.
  top: schema.Size = 5
