"""What trusting the letter's parameters costs."""
