"""What is minimised: a file for each objective, and their weighted sum."""
