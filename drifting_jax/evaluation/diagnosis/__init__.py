"""What an encoder and temperatures make of the drift before a generator is trained."""
