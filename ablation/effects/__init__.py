"""What a stage does, seen from outside: a configuration is built at the smallest size, looked at, and compared with its parent's."""
