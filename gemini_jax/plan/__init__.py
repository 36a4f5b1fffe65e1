"""What a run needs on devices that are not here."""
