"""Commands of `ablate`, one module each; light until they run."""
