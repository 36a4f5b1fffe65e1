"""What parameters can become, where they come from and where they go to."""
