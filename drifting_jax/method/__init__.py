"""The paper: fields, losses, features, guidance and encoders, in jax.numpy."""
