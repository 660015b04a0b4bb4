"""Images of conditions that are arrays: generators that learn from pairs of both."""
