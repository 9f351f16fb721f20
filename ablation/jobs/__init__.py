"""The job kinds: one module each, with `run(io) -> metrics`. This package is light; the modules are loaded in jobs only."""
