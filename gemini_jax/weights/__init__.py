"""What parameters can become, and where they come from and go to."""
