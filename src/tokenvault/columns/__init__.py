"""Arrays, digits and random numbers as columns of numpy; they know nothing of payments."""
