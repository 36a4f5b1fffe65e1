"""Extensions of the training state: what adapts beside the parameters."""
