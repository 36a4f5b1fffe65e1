"""What is minimised: sums and the weights of losses."""
