"""Pure programs: the training steps, the sampler, the sample queue, the state."""
